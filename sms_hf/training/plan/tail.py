"""How much the weights after a step count in the mean with which a training ends."""

from collections.abc import Callable

EMA_SPAN = 0.1
"""Fraction of the training over which the exponential mean forgets (to 1/e): the same for short and long trainings."""

LAWA_SNAPSHOTS, LAWA_INTERVAL = 5, 0.05
"""How many snapshots are averaged, the last one at the end, and the fraction of the training between two of them."""


def ema_share(step: int, num_steps: int) -> float:
    """Exponential moving average (Polyak and Juditsky 1992); the plain mean of all steps until it is as long as its span."""
    return 1 / min(step, max(round(EMA_SPAN * num_steps), 1))


def lawa_share(step: int, num_steps: int) -> float:
    """Latest weight averaging (Kaddour 2022, arXiv 2209.14981): the mean of the last snapshots, at equal intervals."""
    snapshots = sorted({num_steps - round(j * LAWA_INTERVAL * num_steps) for j in range(LAWA_SNAPSHOTS)} - {0})
    return 1 / (snapshots.index(step) + 1) if step in snapshots else 0.0


TAIL_AVERAGES: dict[str, Callable[[int, int], float]] = {"ema": ema_share, "lawa": lawa_share}
"""
Name -> (step, counted from 1, number of steps) -> share of that step's weights in the mean of all so far, in [0, 1].

The first share above 0 begins a mean, whatever it is.
"""
