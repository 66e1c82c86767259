"""The house: rooms know only the rooms below them, the lower ones know torch alone, and none is a hall."""

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
    "metrics": set(),
    "speed": set(),
    "compact": {"choices", "files", "sparsity", "speed"},
    "report": {"files"},
    "hub": {"choices", "files", "sparsity", "compact", "report"},
    "inference": {"choices", "files", "sparsity", "compact"},
    "training": {"choices", "files", "sparsity", "soup", "compact", "report", "hub"},
    "watching": {"files", "report", "training"},
    "demo": set(),
    "tasks": {"choices", "files", "sparsity", "soup", "report", "inference", "training"},
    "compare": {"choices", "files", "report", "training", "tasks"},
    "launching": {"choices"},
    "torchrun": set(),
    "registration": set(),
    "cli": {"choices", "files", "sparsity", "soup", "compact", "hub", "inference", "training", "watching", "launching"},
}
TRAINING = (
    *("processes", "plan", "random_states", "run_directory", "live", "deciding", "arguments"),
    *("masked", "batch_norm", "ensemble", "scoring", "spawning", "tracking", "cost", "run", "trainer"),
)
"""The rooms of `training`, each of which knows only those before it."""
MOST = 12
"""Files that a folder may hold besides `__init__.py`."""
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


def test_the_rooms_of_training_know_only_those_before_them():
    checked = set()
    for path in (ROOT / "training").rglob("*.py"):
        parts = path.relative_to(ROOT / "training").with_suffix("").parts
        if parts == ("__init__",):
            continue
        package = ".".join(["sms_hf", *path.relative_to(ROOT).parent.parts])
        modules = imported_modules(path.read_text(encoding="utf-8"), package)
        known = {name.split(".")[2] for name in modules if name.startswith("sms_hf.training.")}
        assert known <= set(TRAINING[: TRAINING.index(parts[0]) + 1]), path.name
        checked.add(parts[0])
    assert checked == set(TRAINING)


def test_no_folder_is_a_hall():
    for folder in [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST, f"{folder.name} holds {len(modules)} modules: make rooms"


def test_tests_mirror_the_rooms():
    tests = Path(__file__).parent
    for folder in ("files", "sparsity", "soup", "metrics", "compact", "hub", "inference", "report", "compare", "demo"):
        assert list((tests / folder).glob("test_*.py")), folder
    for folder in ("processes", "plan", "masked", "run", "cost"):
        assert list((tests / "training" / folder).glob("test_*.py")), folder


def test_the_public_names_are_few():
    assert len(sms_hf.__all__) <= 24
    for name in sms_hf.__all__:
        assert getattr(sms_hf, name) is not None


def test_no_two_test_files_have_one_name():
    """Outside of packages pytest would take one for the other."""
    files = [p for p in Path(__file__).parent.rglob("test_*.py") if not (p.parent / "__init__.py").exists()]
    names = [path.name for path in files]
    assert sorted(names) == sorted(set(names))
