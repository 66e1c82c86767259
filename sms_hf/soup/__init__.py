"""Averaging checkpoints that share one mask. Needs torch and safetensors alone."""

from ..files.checkpoint import Checkpoint
from ..files.folder import CheckpointError
from .averaging import average_checkpoints
from .calibration import (
    expected_calibration_error,
    maximum_calibration_error,
    worst_class_accuracy,
)
from .diagnostics import (
    Rift,
    advice,
    barrier,
    find_rifts,
    loss_along_line,
    mask_overlap,
    max_barrier,
    pairwise_geometry,
    subsets,
    theoretical_speedup,
)
from .recipes import GreedyTrial, greedy_ingredients, greedy_soup, uniform_soup

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GreedyTrial",
    "Rift",
    "advice",
    "average_checkpoints",
    "barrier",
    "expected_calibration_error",
    "find_rifts",
    "greedy_ingredients",
    "greedy_soup",
    "loss_along_line",
    "mask_overlap",
    "max_barrier",
    "maximum_calibration_error",
    "pairwise_geometry",
    "subsets",
    "theoretical_speedup",
    "uniform_soup",
    "worst_class_accuracy",
]
