"""Damage to a run directory between two attempts."""

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("truncated", "flipped", "deleted")
GROUPS: dict[str, tuple[str, ...]] = {
    "records": ("_run/**/*.json",),
    "weights": ("_run/**/*.safetensors",),
    "checkpoints": ("_run/**/checkpoint-*/*",),
    "final": ("*",),
}
"""Files by what they are for: each group is hit equally often, however many files it has."""
REPAIRED = re.compile(
    r"redo|redone|again|damaged|discard|restor|anew|broken|checksum|incomplete|missing", re.IGNORECASE
)


@dataclass(frozen=True)
class Fault:
    """`kind` of `KINDS`, what happened, to which file (relative to the run directory)."""

    kind: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path} ({self.detail})"

    def is_named(self, printed: str) -> bool:
        """Whether a line says that something is made again, and names the file or the folder that it belongs to."""
        parts = Path(self.path).parts
        names = {parts[-1], Path(parts[-1]).stem, *(part for part in parts[1:-1] if not part.startswith("phase-"))}
        return any(REPAIRED.search(line) and any(name in line for name in names) for line in printed.splitlines())


def damage(output: Path, rng: random.Random, kind: str | None = None) -> Fault | None:
    """Damage one file, of a group and in a way drawn from `rng`; `None` where there is nothing to damage yet."""
    groups = {name: _members(output, name) for name in GROUPS}
    groups = {name: members for name, members in groups.items() if members}
    if not groups:
        return None
    path = rng.choice(groups[rng.choice(sorted(groups))])
    kind = kind or rng.choice(KINDS)
    return hurt(output, path, kind, rng)


def hurt(output: Path, path: Path, kind: str, rng: random.Random) -> Fault:
    """
    Damage a given file.

    Raises:
        ValueError: For an unknown kind.
    """
    name, size = str(path.relative_to(output)), path.stat().st_size
    if kind == "deleted" or (size == 0 and kind in KINDS):
        path.unlink()
        return Fault("deleted", name, f"{size} bytes")
    if kind == "truncated":
        left = rng.choice([0, rng.randrange(size), size - 1])
        os.truncate(path, left)
        return Fault(kind, name, f"{left} of {size} bytes are left")
    if kind == "flipped":
        data = bytearray(path.read_bytes())
        places = sorted(rng.randrange(size) for _ in range(rng.choice([1, 1, 4])))
        for place in places:
            data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return Fault(kind, name, f"one bit at {', '.join(map(str, places))} of {size}")
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")


def _members(output: Path, group: str) -> list[Path]:
    found = {path for pattern in GROUPS[group] for path in output.glob(pattern) if path.is_file()}
    if group in ("records", "weights"):
        found = {path for path in found if not path.parent.name.startswith("checkpoint-")}
    return sorted(found)
