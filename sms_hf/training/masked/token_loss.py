"""The evaluation loss, weighted by tokens."""

from torch import Tensor


class WeightedMean:
    """Mean of batch losses, each weighted by the number of targets it is a mean of; Trainer weights by rows."""

    def __init__(self, total: float = 0.0, targets: float = 0) -> None:
        self._total = total
        self._targets = targets
        self.parts: list[tuple[float, float]] = []
        """What each batch added to the sums."""

    def add(self, loss: float, targets: int) -> None:
        if targets:
            self._total += loss * targets
            self._targets += targets
            self.parts.append((loss * targets, targets))

    @property
    def sums(self) -> tuple[float, float]:
        """What `WeightedMean(*sums)` goes on from; sums of several processes may be added."""
        return self._total, self._targets

    @property
    def value(self) -> float | None:
        return self._total / self._targets if self._targets else None


def count_targets(labels: Tensor, shifted: bool) -> int:
    """
    How many targets the loss of a batch is a mean of: labels other than -100.

    Args:
        labels (`Tensor`): `(batch, ...)`.
        shifted (`bool`): Whether the loss drops the first position, as causal language models do.
    """
    return int((labels[..., 1:] if shifted and labels.dim() > 1 else labels).ne(-100).sum())
