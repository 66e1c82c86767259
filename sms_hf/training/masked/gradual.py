"""Masks that change while a candidate is trained: gradual pruning (GMP) and dynamic pruning with feedback (DPF)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...sparsity.masks import Masks

FEEDBACK_STEPS = 16
"""DPF takes a new mask from the dense weights every so many steps (Lin et al., ICLR 2020)."""

DENSE = "dense.safetensors"

Prune = Callable[[nn.Module, float, Masks | None], Masks]
"""(model, sparsity, masks to stay within) -> masks; prunes the model in place."""


class GradualPruning:
    """
    Prunes a model at events during its training.

    The parameters hold masked weights at all times but inside the optimizer's step, so that forward and backward passes,
    evaluations and checkpoints see the pruned model. With feedback (DPF) the dense weights are kept aside: the step is
    taken from them, with the gradient at the masked weights, and pruned weights may come back.

    Args:
        events (`Sequence[tuple[float, float]]`): (fraction of the steps, sparsity from then on), in order. An event falls
            after step `round(fraction * num_steps)`; at 0 it comes before the first one.
        feedback (`bool`): GMP without (pruned weights are gone), DPF with it.
        prune (`Callable`): How to prune.
    """

    def __init__(self, events: Sequence[tuple[float, float]], feedback: bool, prune: Prune):
        self.events = list(events)
        self.feedback = feedback
        self._prune = prune
        self._dense: dict[str, Tensor] = {}

    def sparsity_after(self, step: int, num_steps: int) -> float:
        """Sparsity that the events up to this step ask for; 0.0 before the first."""
        passed = [sparsity for fraction, sparsity in self.events if round(fraction * num_steps) <= step]
        return passed[-1] if passed else 0.0

    @torch.no_grad()
    def begin(self, model: nn.Module, masks: Masks) -> Masks:
        """Masks to start with, from those of the parent; keeps the dense weights of a model with feedback."""
        if self.feedback:
            self._dense = {name: model.get_parameter(name).detach().clone() for name in masks}
        start = [sparsity for fraction, sparsity in self.events if fraction == 0]
        return self._prune(model, start[-1], None if self.feedback else masks) if start else masks

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Put the dense weights in place for the optimizer's step."""
        for name, weight in self._dense.items():
            model.get_parameter(name).copy_(weight)

    @torch.no_grad()
    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks, step: int, num_steps: int
    ) -> Masks:
        """Masks after a step (counted from 1): the same object, or new ones, by which the model is pruned already."""
        for name, weight in self._dense.items():
            weight.copy_(model.get_parameter(name))
        sparsity = self.sparsity_after(step, num_steps)
        due = sparsity != self.sparsity_after(step - 1, num_steps)
        if self.feedback:
            return self._prune(model, sparsity, None) if sparsity and (due or step % FEEDBACK_STEPS == 0) else masks
        if not due:
            return masks
        pruned = self._prune(model, sparsity, masks)
        _mask_momentum_(optimizer, model, pruned)
        return pruned

    @torch.no_grad()
    def finish(self, model: nn.Module, masks: Masks, keep_dense: bool) -> Masks | None:
        """Make the final mask permanent, or leave the dense weights in the model (and return no masks)."""
        self.before_step(model)
        if keep_dense:
            return None
        return self._prune(model, self.events[-1][1], None if self.feedback else masks)

    def save(self, folder: Path) -> None:
        """Write the dense weights beside a checkpoint, which holds the masked ones."""
        if self._dense:
            save_file(self._dense, folder / DENSE)

    def load(self, folder: Path) -> None:
        """Read the dense weights of a checkpoint back."""
        if self._dense:
            read = load_file(folder / DENSE)
            for name, weight in self._dense.items():
                weight.copy_(read[name])


def _mask_momentum_(optimizer: torch.optim.Optimizer, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """A momentum of a weight that is gone must not count any more: set all buffers of the weight's shape to zero there."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(~mask.to(value.device), 0.0)
