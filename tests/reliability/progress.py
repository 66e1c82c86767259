"""What a run directory tells about the moment at which its run ended."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

PLACES = (
    "before pruning",
    "pruning",
    "a candidate",
    "a Trainer checkpoint",
    "a file",
    "greedy trials",
    "the merge",
    "the final save",
    "after the end",
)
"""Where a kill can fall: what `describe` begins with."""


def describe(output: Path) -> str:
    """`"a candidate: phase-1, candidate-2 has checkpoint-4"` and the like; the place before the colon is in `PLACES`."""
    internal = output / "_run"
    partial = next((path for path in sorted(output.rglob("*.partial"))), None)
    if partial is not None:
        return f"a file: {partial.relative_to(output)}"
    torn = next((path for path in sorted(internal.rglob("checkpoint-*")) if _is_torn(path)), None)
    if torn is not None:
        return f"a Trainer checkpoint: {torn.relative_to(internal)} holds {_names(torn)}"
    phases = sorted(internal.glob("phase-*"), key=lambda path: int(path.name.removeprefix("phase-")))
    if not phases:
        return "before pruning: no phase has begun"
    phase = phases[-1]
    if (phase / "phase.json").is_file():
        if int(phase.name.removeprefix("phase-")) < _planned(output):
            return f"pruning: {phase.name} is finished, the next has not begun"
        if (output / "README.md").is_file():
            return "after the end: README.md is there"
        return f"the final save: {_names(output)}"
    if not (phase / "parent.json").is_file():
        return f"pruning: {phase.name} holds {_names(phase)}"
    if (phase / "trial").is_dir():
        return f"greedy trials: {phase.name} holds {_names(phase)}"
    open_candidates = [p for p in _candidates(phase) if not (phase / f"{p.name}.json").is_file()]
    if open_candidates:
        said = [f"{path.name} has {_names(path)}" for path in open_candidates]
        return f"a candidate: {phase.name}, {'; '.join(said)}"
    return f"the merge: {phase.name} holds {_names(phase)}"


def place(where: str) -> str:
    return where.partition(":")[0]


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path or its end matches a glob."""
    return fnmatch(path, pattern) or fnmatch(path, f"*/{pattern}")


def _is_torn(checkpoint: Path) -> bool:
    """Trainer writes trainer_state.json last, and removes a checkpoint file by file."""
    return checkpoint.is_dir() and not {"trainer_state.json", "optimizer.pt", "model.safetensors"} <= set(
        _all(checkpoint)
    )


def _planned(output: Path) -> int:
    try:
        return len(json.loads((output / "_run" / "run.json").read_text())["plan"])
    except (OSError, ValueError, KeyError):  # Damaged on purpose.
        return 0


def _candidates(phase: Path) -> list[Path]:
    return sorted(path for path in phase.glob("candidate-*") if path.is_dir())


def _all(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> str:
    names = [name for name in _all(folder) if not re.fullmatch(r"(generation_)?config\.json|training_args\.bin", name)]
    return ", ".join(names) or "nothing"
