"""The user's classes, and the machinery behind them."""

from .arguments import SparseSoupArguments, SparseSoupTrainingArguments
from .bleu import bleu_metrics, sacrebleu_signature
from .masked_trainer import MaskedTrainerMixin
from .trainer import SparseSoupMixin, SparseSoupTrainer

__all__ = [
    "MaskedTrainerMixin",
    "SparseSoupArguments",
    "SparseSoupMixin",
    "SparseSoupTrainer",
    "SparseSoupTrainingArguments",
    "bleu_metrics",
    "sacrebleu_signature",
]
