"""What to prune, and the masks themselves. Needs torch and safetensors alone."""

from .masks import MaskError, Masks
from .prunable import Prunable, find_prunable
from .pruning import prune
from .schedules import phase_sparsities

__all__ = ["MaskError", "Masks", "Prunable", "find_prunable", "phase_sparsities", "prune"]
