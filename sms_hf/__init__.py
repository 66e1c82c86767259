"""Sparse Model Soups for Hugging Face Transformers."""

from .hub import CompactError, CompactFile, load, pack, push_to_hub, unpack
from .hub.rescue import RescueError, rescue
from .inference import Change, Compaction, compact, plan_compaction
from .report import format_report
from .soup import average_checkpoints, greedy_soup, uniform_soup
from .sparsity import CRITERIA, MaskError, Masks, Prunable, find_groups, find_prunable, phase_sparsities, prune
from .training import (
    METHODS,
    MaskedTrainerMixin,
    SparseSoupArguments,
    SparseSoupMixin,
    SparseSoupTrainer,
    SparseSoupTrainingArguments,
    bleu_metrics,
    class_maps,
    classification_metrics,
    make_ensemble,
    merge_lora,
    sacrebleu_signature,
    segmentation_metrics,
)

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "METHODS",
    "Change",
    "CompactError",
    "CompactFile",
    "Compaction",
    "MaskError",
    "MaskedTrainerMixin",
    "Masks",
    "Prunable",
    "RescueError",
    "SparseSoupArguments",
    "SparseSoupMixin",
    "SparseSoupTrainer",
    "SparseSoupTrainingArguments",
    "average_checkpoints",
    "bleu_metrics",
    "class_maps",
    "classification_metrics",
    "compact",
    "find_groups",
    "find_prunable",
    "format_report",
    "greedy_soup",
    "load",
    "make_ensemble",
    "merge_lora",
    "pack",
    "phase_sparsities",
    "plan_compaction",
    "prune",
    "push_to_hub",
    "rescue",
    "sacrebleu_signature",
    "segmentation_metrics",
    "uniform_soup",
    "unpack",
]
