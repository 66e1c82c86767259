"""The step of an outer optimizer: from where copies started, towards (and beyond) their average."""

from collections.abc import Sequence
from pathlib import Path

from .averaging import average_checkpoints


def outer_weights(rate: float, momentum: float) -> tuple[list[float], list[float]]:
    """
    DiLoCo's outer step (Douillard et al. 2023; SGD with Nesterov momentum on what copies moved) as affine combinations.

    With the copies' start `theta`, their mean `m`, `Delta = theta - m` and the velocity `v' = momentum v + Delta` the step is
    `theta' = theta - rate (Delta + momentum v')`. Velocities are kept as the point `p = theta - v`, a model folder like the
    others, so that both the step and the next point are weighted averages: masks and zeros are checked as in every soup.

    Args:
        rate (`float`): Outer learning rate; 1 without momentum is the average itself.
        momentum (`float`): In `[0, 1)`.

    Returns:
        `tuple[list[float], list[float]]`: Weights of `(m, theta, p)` in `theta'`, and of `(theta', m, theta, p)` in `p'`; the
        sum of each is 1.
    """
    ahead, behind = rate * (1 + momentum), rate * momentum**2
    return [ahead, 1 - ahead - behind, behind], [1.0, 1.0, -(1 + momentum), momentum]


def outer_step(
    mean: Path, start: Path, point: Path | None, step: Sequence[float], output: Path, next_point: Path | None
) -> None:
    """
    Write where the copies go on, and the point of its velocity.

    Args:
        mean, start, point (`Path`): Model folders: the copies' average, what they started from, the point that the step before
            left (`None`: no velocity yet).
        step (`Sequence[float]`): Outer learning rate and momentum.
        output, next_point (`Path`): The folders to write; no point after the last step.
    """
    taken, carried = outer_weights(*step)
    folders = [mean, start, point or start]
    average_checkpoints(folders, output, taken)
    if next_point is not None:
        average_checkpoints([output, *folders], next_point, carried)
