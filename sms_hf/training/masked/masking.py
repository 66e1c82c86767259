"""Keeps masks exact during training: gradients before clipping, weights after the step."""

from typing import Any

import torch
from torch import Tensor, nn

from ...sparsity.masks import Masks, local, named_weights, share


class MaskEnforcer:
    """
    Multiplies gradients and weights by their masks.

    Masking the gradients makes training identical to training `mask * weight`: pruned weights stay out of the clipping norm
    and out of the optimizer's statistics. Masking the weights afterwards makes the zeros exact whatever the optimizer does.

    Parameters are looked up by name at every call: Accelerate and wrappers may replace them after the optimizer is made.
    Masks are kept in the dtype of the parameter, which multiplies several times faster than a bool mask. Of parameters that
    are sharded (FSDP2) every process multiplies its own share; nothing is sent.

    Args:
        masks ([`Masks`]): The masks to hold.
    """

    def __init__(self, masks: Masks):
        self.masks = masks
        self._parameters: list[Tensor] = []
        self._factors: list[Tensor] = []

    @torch.no_grad()
    def mask_gradients_(self, model: nn.Module) -> None:
        """Set the gradients of pruned weights to zero."""
        parameters, factors = self._resolve(model)
        held = [(local(p.grad), f) for p, f in zip(parameters, factors, strict=True) if p.grad is not None]
        if held:
            torch._foreach_mul_([gradient for gradient, _ in held], [factor for _, factor in held])

    @torch.no_grad()
    def mask_weights_(self, model: nn.Module) -> None:
        """Set pruned weights to zero."""
        parameters, factors = self._resolve(model)
        torch._foreach_mul_([local(p) for p in parameters], factors)

    def _resolve(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        named = named_weights(model)
        parameters: list[Any] = [named.get(name) for name in self.masks]  # A mask without one is told below.
        if any(a is not b for a, b in zip(parameters, self._parameters or [None] * len(parameters), strict=True)):
            # New parameters: clear what they hold (0 * NaN would stay NaN) and bring the masks to their device and dtype.
            self.masks.apply_(model)
            self._factors = [
                share(mask, p).to(p.dtype) for mask, p in zip(self.masks.values(), parameters, strict=True)
            ]
            self._parameters = parameters
        return parameters, self._factors
