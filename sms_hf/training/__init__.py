"""The user's classes, and the machinery behind them."""

from .arguments import SparseSoupArguments, SparseSoupTrainingArguments
from .bleu import bleu_metrics, sacrebleu_signature
from .ensemble import make_ensemble
from .masked_trainer import MaskedTrainerMixin
from .methods import METHODS
from .trainer import SparseSoupMixin, SparseSoupTrainer

__all__ = [
    "METHODS",
    "MaskedTrainerMixin",
    "SparseSoupArguments",
    "SparseSoupMixin",
    "SparseSoupTrainer",
    "SparseSoupTrainingArguments",
    "bleu_metrics",
    "make_ensemble",
    "sacrebleu_signature",
]
