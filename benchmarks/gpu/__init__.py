"""
All that needs a GPU, piece by piece and in order of worth: `python -m benchmarks.gpu PART`, or `make gpu`.

Every part measures row by row, keeps each row as JSON as soon as it is there, renders `PART.md` from all rows, and goes on
where it was cut off. With `--device cpu --tiny` the same code runs in seconds, on any machine.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / ".gpu"
"""What `make gpu-bundle` collects: data, wheels, results so far."""

# The benchmarks are scripts beside this package, and the translation task is a recipe.
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "recipes")]
