"""What to prune, and the masks themselves. Needs torch and safetensors alone."""

from .criteria import CRITERIA, Criterion, Seen
from .masks import MaskError, Masks
from .patterns import nm_skipped, pattern_sparsity
from .prunable import Prunable, find_prunable
from .pruning import prune
from .schedules import phase_sparsities
from .selection import Score
from .structures import Group, Member, find_groups

__all__ = [
    "CRITERIA",
    "Criterion",
    "Group",
    "MaskError",
    "Masks",
    "Member",
    "Prunable",
    "Score",
    "Seen",
    "find_groups",
    "find_prunable",
    "nm_skipped",
    "pattern_sparsity",
    "phase_sparsities",
    "prune",
]
