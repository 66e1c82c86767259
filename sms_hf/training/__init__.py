"""The user's classes, and the machinery behind them."""

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
