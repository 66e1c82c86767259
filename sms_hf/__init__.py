"""Sparse Model Soups for Hugging Face Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_reader

if TYPE_CHECKING:
    from .compact import load, pack, unpack
    from .hub import push_to_hub
    from .inference import drop_layers, export, shrink, trim_vocabulary
    from .metrics import bleu_metrics
    from .report import format_report
    from .soup import greedy_soup, uniform_soup
    from .sparsity import CRITERIA, MaskError, Masks, find_prunable, prune
    from .speed import speed_up
    from .training import (
        METHODS,
        MaskedTrainerMixin,
        SparseSoupArguments,
        SparseSoupMixin,
        SparseSoupTrainer,
        SparseSoupTrainingArguments,
    )

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "METHODS",
    "MaskError",
    "MaskedTrainerMixin",
    "Masks",
    "SparseSoupArguments",
    "SparseSoupMixin",
    "SparseSoupTrainer",
    "SparseSoupTrainingArguments",
    "bleu_metrics",
    "drop_layers",
    "export",
    "find_prunable",
    "format_report",
    "greedy_soup",
    "load",
    "pack",
    "prune",
    "push_to_hub",
    "shrink",
    "speed_up",
    "trim_vocabulary",
    "uniform_soup",
    "unpack",
]

_ROOMS = {
    "compact": ("load", "pack", "unpack"),
    "hub": ("push_to_hub",),
    "inference": ("drop_layers", "export", "shrink", "trim_vocabulary"),
    "metrics": ("bleu_metrics",),
    "report": ("format_report",),
    "soup": ("greedy_soup", "uniform_soup"),
    "sparsity": ("CRITERIA", "MaskError", "Masks", "find_prunable", "prune"),
    "speed": ("speed_up",),
    "training": (
        *("METHODS", "MaskedTrainerMixin", "SparseSoupArguments", "SparseSoupMixin"),
        *("SparseSoupTrainer", "SparseSoupTrainingArguments"),
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """What is public is imported when it is first asked for: torch and transformers take seconds."""
    if name in _ROOMS or name in _HOME:
        room = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
        value = globals()[name] = room if name in _ROOMS else getattr(room, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


register_reader()
