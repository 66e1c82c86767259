"""Sparsity per phase and per pruning event; learning rates of retraining."""

import math
from collections.abc import Callable, Sequence

from ..choices import check_choice


def phase_sparsities(target_sparsity: float, num_phases: int) -> list[float]:
    """
    Sparsity after each phase when every phase removes the same fraction of the weights that are left.

    `s_j = 1 - (1 - p)^j` with `p = 1 - (1 - s)^(1/K)`: the rule of iterative magnitude pruning in Zimmer, Spiegel,
    Pokutta, "Sparse Model Soups" (ICLR 2024), Algorithm 1. The last value is `target_sparsity` itself, not its rounding.

    Args:
        target_sparsity (`float`): Goal `s`, fraction removed of the prunable weights, in `[0, 1)`.
        num_phases (`int`): Number `K >= 1` of prune-retrain-average cycles.

    Returns:
        `list[float]`: `K` increasing values in `[0, 1)`.

    >>> phase_sparsities(0.75, 2)
    [0.5, 0.75]
    """
    check_sparsity("target_sparsity", target_sparsity)
    if num_phases < 1:
        raise ValueError(
            f"num_phases must be at least 1, got {num_phases}. One phase prunes, retrains and averages once."
        )
    kept_per_phase = (1.0 - target_sparsity) ** (1.0 / num_phases)
    return [1.0 - kept_per_phase**j for j in range(1, num_phases)] + [float(target_sparsity)]


def check_sparsity(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` is a fraction in `[0, 1)`."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value}. Pass 0.9 to remove 90 % of the prunable weights.")


def gradual_sparsities(target_sparsity: float, num_events: int) -> list[float]:
    """
    Sparsity after each pruning event of gradual magnitude pruning.

    `s_j = s - s (1 - j/J)^3`, the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (2017).

    Args:
        target_sparsity (`float`): Goal `s`, in `[0, 1)`.
        num_events (`int`): `J >= 1`.

    Returns:
        `list[float]`: `J` increasing values, the last `target_sparsity` itself.
    """
    check_sparsity("target_sparsity", target_sparsity)
    if num_events < 1:
        raise ValueError(f"num_events must be at least 1, got {num_events}.")
    early = [target_sparsity - target_sparsity * (1 - j / num_events) ** 3 for j in range(1, num_events)]
    return [*early, float(target_sparsity)]


def num_pruning_events(total: float, interval: float) -> int:
    """
    How many times gradual pruning prunes: `total // interval - 1`, so that at least one interval is left to recover.

    Args:
        total (`float`): Length of the training, in epochs (or any unit).
        interval (`float`): Between two events, in the same unit; at most half of `total`.

    Returns:
        `int`: At least 1.

    Raises:
        ValueError: If not even one event fits.
    """
    # 0.3 / 0.1 is 2.9999999999999996: a quotient this close to an integer is meant to be it.
    intervals = int(total / interval + 1e-9) if interval > 0 else 0
    if intervals < 2:
        raise ValueError(
            f"pruning_interval must be above 0 and at most half of the training, {total / 2:g} epochs, got {interval:g}: one "
            "interval before the first pruning event, one after the last."
        )
    return intervals - 1


def allr_scale(norm_before: float, norm_after: float, fraction: float, epochs: float, original_epochs: float) -> float:
    """
    Peak of ALLR relative to the peak of the dense training: `d = min(max(d_1, d_2), 1)`.

    `d_1 = sqrt(|n^2 - n_p^2|) / (n sqrt(p))` with the norms before and after this phase's pruning and the fraction `p` that it
    removed of what was left; `d_2 = epochs / original_epochs`. Zimmer, Spiegel, Pokutta, "How I Learned to Stop Worrying
    and Love Retraining" (ICLR 2023).

    Args:
        norm_before, norm_after (`float`): L2 norms of all weights and biases, `norm_before > 0`.
        fraction (`float`): `p`, in `[0, 1)`.
        epochs, original_epochs (`float`): Of this retraining and of the dense training, above 0.

    Returns:
        `float`: In `(0, 1]`.

    Raises:
        ValueError: If a norm or a length is not above 0.
    """
    for name, value in (("norm_before", norm_before), ("epochs", epochs), ("original_epochs", original_epochs)):
        if not value > 0:
            raise ValueError(
                f"{name} must be above 0, got {value}. ALLR compares a retraining with the dense training that it follows."
            )
    removed = math.sqrt(abs(norm_before**2 - norm_after**2)) / (norm_before * math.sqrt(fraction)) if fraction else 0.0
    return min(max(removed, min(epochs / original_epochs, 1.0)), 1.0)


def retrain_learning_rate(
    name: str,
    step: int,
    num_steps: int,
    *,
    max_lr: float,
    min_lr: float = 0.0,
    original: Sequence[float] | None = None,
    scale: float = 1.0,
) -> float:
    """
    Learning rate of one step of retraining, as a closed form.

    With `N` steps, of which `N_w = int(0.1 N)` are a warm-up by half a cosine in SLR, CLR, LLR and ALLR, and `u = t - N_w`,
    `R = N - N_w`:

    - `"ft"`: `min_lr` (Han et al. 2015).
    - `"lrw"`: the last `N` rates of the dense training, again (Renda et al. 2020).
    - `"slr"`: the whole schedule of the dense training, squeezed into `R` steps (Le and Hua 2021).
    - `"clr"`: `min_lr + (max_lr - min_lr) (1 + cos(pi u / R)) / 2` (Le and Hua 2021).
    - `"llr"`: `max_lr (1 - u / R)`; `"allr"`: the same times `scale` (Zimmer et al., ICLR 2023).

    Args:
        name (`str`): A key of `RETRAIN_SCHEDULES`.
        step (`int`): `t`, in `[0, num_steps]`; at `num_steps` the value that the schedule ends with.
        num_steps (`int`): `N >= 1`.
        max_lr, min_lr (`float`): Highest rate of the dense training, and its lowest after warm-up.
        original (`Sequence[float]`, *optional*): Rate of every step of the dense training, for `"lrw"` and `"slr"`.
        scale (`float`, *optional*, defaults to 1.0): ALLR's `d`: [`allr_scale`].

    Returns:
        `float`: At `step = 0` of a schedule with warm-up 0; at `num_steps` 0 for LLR and ALLR, `min_lr` for FT and CLR, the
        last of `original` for LRW and SLR.

    Raises:
        ValueError: For an unknown name, a step or scale out of range, or a missing or too short `original`.
    """
    check_choice("retrain_schedule", name, sorted(RETRAIN_SCHEDULES))
    if num_steps < 1 or not 0 <= step <= num_steps:
        raise ValueError(
            f"step must lie in [0, num_steps] with num_steps of at least 1, got step {step} of {num_steps}. Steps are optimizer "
            "updates, counted from 0."
        )
    if not 0.0 < scale <= 1.0:
        raise ValueError(f"scale must lie in (0, 1], got {scale}. Pass what allr_scale returns.")
    return RETRAIN_SCHEDULES[name](step, num_steps, max_lr, min_lr, original, scale)


def _ft(step, num_steps, max_lr, min_lr, original, scale) -> float:
    return min_lr


def _lrw(step, num_steps, max_lr, min_lr, original, scale) -> float:
    original = _given("lrw", original)
    if num_steps > len(original):
        raise ValueError(
            f"retrain_schedule='lrw' replays the dense training's last {num_steps} steps, but that had {len(original)}. Retrain "
            "shorter, or choose 'slr' or 'llr'."
        )
    return original[min(len(original) - num_steps + step, len(original) - 1)]


def _slr(step, num_steps, max_lr, min_lr, original, scale) -> float:
    original = _given("slr", original)
    peak = max(original)

    def squeezed(u: int, rest: int) -> float:
        # In integers: int(0.29 * 100) is 28.
        position = min(u * len(original) // rest, len(original) - 1)
        return peak if position < original.index(peak) else original[position]

    return _warmed_up(step, num_steps, peak, squeezed)


def _clr(step, num_steps, max_lr, min_lr, original, scale) -> float:
    def cosine(u: int, rest: int) -> float:
        return min_lr + (max_lr - min_lr) * (1 + math.cos(math.pi * u / rest)) / 2

    return _warmed_up(step, num_steps, max_lr, cosine)


def _llr(step, num_steps, max_lr, min_lr, original, scale) -> float:
    return _warmed_up(step, num_steps, max_lr, lambda u, rest: max_lr * (1 - u / rest))


def _allr(step, num_steps, max_lr, min_lr, original, scale) -> float:
    return _llr(step, num_steps, scale * max_lr, min_lr, original, 1.0)


RETRAIN_SCHEDULES = {"ft": _ft, "lrw": _lrw, "slr": _slr, "clr": _clr, "llr": _llr, "allr": _allr}
"""Name -> (step, num_steps, max_lr, min_lr, original, scale) -> learning rate."""


def _warmed_up(step: int, num_steps: int, peak: float, after: Callable[[int, int], float]) -> float:
    """Half a cosine from 0 to `peak` over a tenth of the steps, then `after(u, R)`."""
    warm = int(0.1 * num_steps)
    if step < warm:
        return peak * (1 - math.cos(math.pi * step / warm)) / 2
    return after(step - warm, num_steps - warm)


def _given(name: str, original: Sequence[float] | None) -> Sequence[float]:
    if original is None or len(original) == 0:
        raise ValueError(
            f"retrain_schedule={name!r} needs the learning rates of the dense training, got none. Set original_schedule."
        )
    return original
