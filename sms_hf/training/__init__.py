"""The user's classes, and the machinery behind them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import SparseSoupArguments, SparseSoupTrainingArguments
    from .ensemble import make_ensemble
    from .masked.adapters import merge_lora
    from .masked.masked_trainer import MaskedTrainerMixin
    from .plan.methods import METHODS
    from .trainer import SparseSoupMixin, SparseSoupTrainer

__all__ = [
    "METHODS",
    "MaskedTrainerMixin",
    "SparseSoupArguments",
    "SparseSoupMixin",
    "SparseSoupTrainer",
    "SparseSoupTrainingArguments",
    "make_ensemble",
    "merge_lora",
]

_HOME = {
    "METHODS": "plan.methods",
    "MaskedTrainerMixin": "masked.masked_trainer",
    "SparseSoupArguments": "arguments",
    "SparseSoupMixin": "trainer",
    "SparseSoupTrainer": "trainer",
    "SparseSoupTrainingArguments": "arguments",
    "make_ensemble": "ensemble",
    "merge_lora": "masked.adapters",
}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: who looks at a run from outside needs its file names, and no transformers."""
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
