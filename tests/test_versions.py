"""Versions: what is claimed is what is allowed, and what is allowed is tested."""

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it.
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def lower_bounds() -> dict[str, str]:
    return dict(re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in PROJECT["dependencies"])


def is_same(bound: str, pin: str) -> bool:
    """`5.17` and `5.17.0`."""
    width = max(bound.count("."), pin.count("."))
    return [*bound.split("."), *["0"] * (width - bound.count("."))] == [
        *pin.split("."),
        *["0"] * (width - pin.count(".")),
    ]


def test_the_oldest_versions_are_those_that_are_tested():
    oldest, bounds = pins("constraints-oldest.txt"), lower_bounds()
    assert oldest.keys() == bounds.keys()
    # Its comment says why.
    assert [name for name in bounds if not is_same(bounds[name], oldest[name])] == ["torch"]
    assert "2.11" in (ROOT / "docs/gpu.md").read_text()


def test_the_readme_claims_what_is_allowed():
    readme, bounds = (ROOT / "README.md").read_text(), lower_bounds()
    python = PROJECT["requires-python"].removeprefix(">=")
    claim = f"Python {python}, torch {bounds['torch']}, transformers {bounds['transformers']}"
    assert f"{claim}, huggingface_hub {bounds['huggingface_hub']} or newer" in " ".join(readme.split())
    classifiers = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert classifiers[0] == python


def test_the_oldest_selection_is_part_of_ci():
    assert "make test-oldest" in (ROOT / ".ci/run").read_text()
