"""Which row the measured tables put before the one that was asked for: docs/results.md, "What a budget buys"."""

from ..arguments import SparseSoupArguments
from ..plan.methods import METHODS
from .forecast import Forecast

FEW_EPOCHS = 3
"""Epochs a phase up to which one longer training was ahead of every soup."""

BEHIND = {
    "sms": (
        (1, 0.75, 0.85, "1.9 points of accuracy on SST-2"),
        (1, 0.85, 0.925, "1 to 4 points of accuracy on digits, 1.1 BLEU on Multi30k"),
        (1, 0.925, 0.965, "5 to 19 points of accuracy on digits"),
        (1, 0.965, 1.0, "21 to 30 points of accuracy on digits"),
        (3, 0.925, 0.965, "1 to 7 points of accuracy on digits"),
    ),
    "gmp-soup": (
        (1, 0.85, 0.925, "2 points of accuracy on digits, 1.1 BLEU on Multi30k"),
        (1, 0.925, 0.965, "4 to 11 points of accuracy on digits"),
        (1, 0.965, 1.0, "19 to 29 points of accuracy on digits"),
        (3, 0.925, 0.965, "1 to 3 points of accuracy on digits"),
    ),
}
"""
Method -> (epochs a phase up to, sparsity from, to, what it was behind `gmp-mx` by data parallelism, in the same wall time and
with as many epochs or fewer).
"""

BEHIND_WITH_TRUNK = {
    "gmp-soup": ((1, 0.925, 0.965, "1 to 3 points of accuracy on digits"),),
    "sms": ((1, 0.925, 0.965, "1 to 4 points of accuracy on digits"),),
}
"""The same, of those whose trunk all processes train. At 3 epochs a phase `gmp-soup` was level."""


def advice_line(args: SparseSoupArguments, cost: Forecast) -> str | None:
    """The row that is recommended, and what the chosen one was behind it; `None` where its epochs are many, or done."""
    is_soup = METHODS[args.pruning_method].averages and not args.pruning_method.endswith("-mx")
    copies = max(cost.candidates)
    if not is_soup or copies < 2 or not cost.trainings or args.max_steps > 0 or args.num_train_epochs > FEW_EPOCHS:
        return None
    line = (
        f"advice: up to {FEW_EPOCHS} epochs a phase, one training of all these epochs was ahead of soups "
        f"(docs/results.md): pruning_method='gmp-mx', on {copies} processes in the same time with candidate_processes={copies}"
    )
    behind = _behind(args)
    if behind:
        line += f" ({args.pruning_method!r} was behind it by {behind})"
    if args.trunk_processes > 1:
        return line if behind else None  # Level, or not measured.
    return f"{line}; the nearest soup: 'gmp-soup' with trunk_processes={copies}"


def _behind(args: SparseSoupArguments) -> str | None:
    if args.averaging_rounds > 1 or (args.shared_fraction and args.trunk_processes == 1):
        return None  # Not the row of the table.
    rows = BEHIND if args.trunk_processes == 1 else BEHIND_WITH_TRUNK
    for epochs, low, high, text in rows.get(args.pruning_method, ()):
        if args.num_train_epochs <= epochs and low <= args.target_sparsity < high:
            return text
    return None
