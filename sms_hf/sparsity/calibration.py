"""What a criterion sees of a few batches: gradients of the loss, or inputs of layers."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .criteria import Criterion, Observe
from .evaluating import evaluating
from .prunable import matrix_dims

Calibration = Callable[[nn.Module], Iterator[Tensor]]
"""model -> the loss (0-d) of each calibration batch: `lambda model: (model(**batch).loss for batch in batches)`."""


def observe(
    model: nn.Module, weights: Mapping[str, Tensor], criterion: Criterion, calibration: Calibration | None
) -> dict[str, Tensor]:
    """
    Sum up what a criterion asks for, over all calibration batches. The model stays as it is: weights, gradients, flags.

    Args:
        model (`nn.Module`): In evaluation mode meanwhile.
        weights (`Mapping[str, Tensor]`): Parameter name -> weight, of this model.
        criterion ([`Criterion`]): What to look at, and what to keep of it.
        calibration (`Callable`): Gives the losses, one batch at a time.

    Returns:
        `dict[str, Tensor]`: Parameter name -> sum; empty for a criterion that looks at nothing.

    Raises:
        ValueError: Without batches, or for weights of which nothing is seen.
    """
    if criterion.observes is None or criterion.observe is None:
        return {}
    if calibration is None:
        raise ValueError(
            f"Expected calibration batches for a pruning_criterion that looks at {criterion.observes}, got none. Pass "
            "calibration=lambda model: (model(**batch).loss for batch in batches)."
        )
    look = {"gradients": _gradients, "inputs": _inputs}[criterion.observes]
    with evaluating(model), torch.enable_grad():
        sums, batches = look(model, weights, criterion.observe, calibration)
    check_batches(batches)
    unseen = [name for name in weights if name not in sums]
    if unseen:
        raise ValueError(
            f"Expected {criterion.observes} of all prunable weights in the calibration batches, got none for {unseen[:3]}. Name "
            "these modules in exclude_modules, or take pruning_criterion='magnitude'."
        )
    return sums


def check_batches(number: int) -> None:
    """Raise `ValueError` where a calibration gave no batches."""
    if not number:
        raise ValueError("Expected at least one calibration batch, got none. Pass a loader that can be iterated again.")


def _gradients(
    model: nn.Module, weights: Mapping[str, Tensor], observe: Observe, calibration: Calibration
) -> tuple[dict[str, Tensor], int]:
    sums: dict[str, Tensor] = {}
    batches = 0
    # Not by backward(): gradients that are being accumulated are somebody else's.
    for loss in calibration(model):
        batches += 1
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                _add(sums, name, observe(weight.detach(), gradient))
    return sums, batches


def _inputs(
    model: nn.Module, weights: Mapping[str, Tensor], observe: Observe, calibration: Calibration
) -> tuple[dict[str, Tensor], int]:
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, weight in weights.items():
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        if leaf != "weight" or matrix_dims(module) is None:
            continue  # Stacked experts, whose layout is their own.
        # Features are the last dimension of a linear map's input, and the second of a convolution's.
        dim = -1 if weight.dim() == 2 else 1

        def look(module, args, name=name, weight=weight, dim=dim) -> None:
            features = args[0].detach().movedim(dim, -1).flatten(0, -2).float()
            _add(sums, name, observe(weight.detach(), features))

        hooks.append(module.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            batches = sum(1 for _ in calibration(model))
    finally:
        for hook in hooks:
            hook.remove()
    return sums, batches


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
