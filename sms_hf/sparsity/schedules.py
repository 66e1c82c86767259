"""Sparsity per phase."""


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
