"""Averaging checkpoints that share one mask. Needs torch and safetensors alone."""

from .averaging import average_checkpoints
from .diagnostics import (
    Rift,
    advice,
    barrier,
    find_rifts,
    mask_overlap,
    pairwise_geometry,
    subsets,
    theoretical_speedup,
)
from .ingredients import SOUP_METHODS, greedy_soup, uniform_soup
from .pool import PARENT, GreedyTrial, Pool

__all__ = [
    "PARENT",
    "SOUP_METHODS",
    "GreedyTrial",
    "Pool",
    "Rift",
    "advice",
    "average_checkpoints",
    "barrier",
    "find_rifts",
    "greedy_soup",
    "mask_overlap",
    "pairwise_geometry",
    "subsets",
    "theoretical_speedup",
    "uniform_soup",
]
