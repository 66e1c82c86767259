"""Averaging checkpoints that share one mask. Needs torch and safetensors alone."""

from .averaging import average_checkpoints
from .checkpoint import Checkpoint, CheckpointError
from .recipes import GreedyTrial, greedy_ingredients, greedy_soup, uniform_soup

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GreedyTrial",
    "average_checkpoints",
    "greedy_ingredients",
    "greedy_soup",
    "uniform_soup",
]
