"""Rooms know only the rooms below them, and the lower two know torch alone."""

import ast
from pathlib import Path

import pytest

import sms_hf

ROOT = Path(sms_hf.__file__).parent
BELOW = {
    "choices": set(),
    "files": set(),
    "sparsity": {"choices", "files"},
    "soup": {"choices", "files", "sparsity"},
    "report": set(),
    "hub": {"choices", "files", "sparsity", "soup", "report"},
    "training": {"choices", "files", "sparsity", "soup", "report", "hub"},
    "inference": {"choices", "files", "sparsity"},
    "demo": set(),
    "cli": {"choices", "files", "sparsity", "soup", "report", "hub", "training", "inference"},
}
FRAMEWORKS = {"transformers", "accelerate", "huggingface_hub", "datasets", "evaluate"}


def imported_modules(source, package):
    """Absolute names of all that a module imports, in functions too. `package`: the package that the module lies in."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            modules |= {origin} if node.module else {f"{origin}.{alias.name}" for alias in node.names}
    return modules


def rooms_in(modules):
    return {name.split(".")[1] for name in modules if name.startswith("sms_hf.")}


def modules_of(room):
    for path in [*(ROOT / room).rglob("*.py"), *ROOT.glob(f"{room}.py")]:
        package = ".".join(["sms_hf", *path.relative_to(ROOT).parent.parts])
        yield path, imported_modules(path.read_text(encoding="utf-8"), package)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rooms():
    found = {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__", "__main__"}
    return sorted(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn, json", {"torch.nn", "json"}),
        ("from ..sparsity.masks import Masks", {"sms_hf.sparsity.masks"}),
        ("from ..sparsity import masks", {"sms_hf.sparsity"}),
        ("from .. import training", {"sms_hf.training"}),
        ("from . import checkpoint", {"sms_hf.soup.checkpoint"}),
        ("from .averaging import WEIGHTS", {"sms_hf.soup.averaging"}),
        ("from sms_hf.report import table", {"sms_hf.report"}),
        ("def f():\n    from transformers import Trainer", {"transformers"}),
    ],
)
def test_imports_are_found(source, expected):
    assert imported_modules(source, "sms_hf.soup") == expected


def test_every_room_has_its_place():
    assert set(rooms()) <= set(BELOW)
    assert {"sparsity", "soup", "hub", "training", "demo", "report"} <= set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_from_below(room):
    for path, modules in modules_of(room):
        assert rooms_in(modules) <= {room, *BELOW[room]}, path.name
        assert "sms_hf" not in modules, f"{path.name} imports the public names: import from the room instead"


@pytest.mark.parametrize("room", ["sparsity", "soup"])
def test_the_lower_rooms_know_no_framework(room):
    checked = 0
    for path, modules in modules_of(room):
        assert not {name.split(".")[0] for name in modules} & FRAMEWORKS, path.name
        checked += 1
    assert checked >= 4
