"""Sparse Model Soups for Hugging Face Transformers."""

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
