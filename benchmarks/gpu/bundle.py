"""
Collect what must travel to a machine with a GPU and without a network, in the git-ignored folder `.gpu`.

    python -m benchmarks.gpu.bundle        or: make gpu-bundle

The corpus, wheels of the few packages that images of GPU machines lack, and the results so far, so that the programme goes
on there. Together with the checkout they stay within 64 MiB.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from . import BUNDLE, ROOT
from .check import CARRIED, CORPORA, CORPUS, LIMIT

RESULTS = ROOT / "runs" / "gpu"
PLATFORM = [
    "--only-binary=:all:",
    "--python-version",
    "3.12",
    "--implementation",
    "cp",
    "--platform",
    "manylinux_2_28_x86_64",
]


def copy_corpus(bundle: Path, source: Path = CORPORA[-1]) -> None:
    if source.is_dir():
        shutil.copytree(source, bundle / CORPUS, dirs_exist_ok=True)
    elif not (bundle / CORPUS).is_dir():
        print(f"There is no Multi30k in {source}: the translation part will not run.")


def fetch_wheels(bundle: Path) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [pin for pin in pins if pin.split("==")[0] in CARRIED]
    shutil.rmtree(bundle / "wheels", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PLATFORM]
    subprocess.run([*command, "-d", str(bundle / "wheels"), *wanted], check=True)


def copy_results(bundle: Path, results: Path = RESULTS) -> None:
    """The results of GPUs so far."""
    shutil.rmtree(bundle / "results", ignore_errors=True)
    for run in results.glob("cuda*"):
        for path in run.rglob("*"):
            if path.is_file() and _travels(path.relative_to(run)):
                target = bundle / "results" / path.relative_to(results)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _travels(path: Path) -> bool:
    """What was measured, and what the rest is measured with; no checkpoints, and of a cell of a comparison its records alone."""
    if any(part.startswith("cells") for part in path.parts):
        return path.name in ("cell.json", "report.json", "result.json")
    if "training" in path.parts:
        return False
    return path.suffix in (".json", ".md") or path.parent.name in ("parent", "data")


def restore_results(output: Path, bundle: Path = BUNDLE, results: Path = RESULTS) -> None:
    """Where nothing was measured yet, go on from the results that travelled."""
    if output.is_relative_to(results) and not output.exists():
        travelled = bundle / "results" / output.relative_to(results)
        if travelled.is_dir():
            shutil.copytree(travelled, output)


def size_of_tree(bundle: Path) -> int:
    """Bytes of the files that git does not ignore, and of the bundle."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = {ROOT / name for name in listed.stdout.split("\0") if name} | {p for p in bundle.rglob("*") if p.is_file()}
    return sum(path.stat().st_size for path in paths if path.is_file())


def check_size(bundle: Path, limit: int = LIMIT) -> None:
    """Raise `SystemExit` in one sentence if checkout and bundle are too large to travel."""
    size = size_of_tree(bundle)
    print(f"{size / 2**20:.1f} MiB of at most {limit / 2**20:.0f}: the checkout and {bundle}")
    if size > limit:
        raise SystemExit(
            f"The checkout and {bundle} must be at most {limit / 2**20:.0f} MiB, they are {size / 2**20:.1f}: remove what "
            "git does not know and what need not travel."
        )


def main() -> None:
    shutil.rmtree(BUNDLE / "site-packages", ignore_errors=True)
    copy_corpus(BUNDLE)
    fetch_wheels(BUNDLE)
    copy_results(BUNDLE)
    check_size(BUNDLE)


if __name__ == "__main__":
    main()
