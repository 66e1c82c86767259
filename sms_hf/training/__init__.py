"""The user's classes, and the machinery behind them."""

from .adapters import merge_lora
from .arguments import SparseSoupArguments, SparseSoupTrainingArguments
from .bleu import bleu_metrics, sacrebleu_signature
from .classification import class_maps, classification_metrics, segmentation_metrics
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
    "class_maps",
    "classification_metrics",
    "make_ensemble",
    "merge_lora",
    "sacrebleu_signature",
    "segmentation_metrics",
]
