"""A model out of parts of another one's tensors: of the same class, by a configuration with smaller numbers."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

Cut = tuple[int, Tensor]
"""Dimension of a tensor, int64 positions along it that stay."""


def rebuild(model: PreTrainedModel, config: PreTrainedConfig, kept: Mapping[str, Cut]) -> PreTrainedModel:
    """
    A new model of the same class that shares no memory with `model`, with its dtype, device, training mode, ties and
    generation settings.

    Args:
        config (`PreTrainedConfig`): Of the new model.
        kept (`Mapping`): Tensor that becomes smaller -> what stays of it.
    """
    small = skeleton(model, copy.deepcopy(config))
    memo: dict[int, nn.Parameter] = {}  # Ties stay ties.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(_cut(parameter, kept.get(name)), parameter.requires_grad)
        _set(small, name, memo[id(parameter)])
    for name, buffer in model.named_buffers(remove_duplicate=False):
        _set(small, name, _cut(buffer, kept.get(name)))
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.train(model.training)


def skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the same class without memory."""
    with torch.device("meta"):
        return type(model)(config)


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, by all of their names."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def shape(tensor: Tensor, cut: Cut | None = None) -> tuple[int, ...]:
    """Of what stays of a tensor."""
    return tuple(len(cut[1]) if cut and d == cut[0] else size for d, size in enumerate(tensor.shape))


def _cut(tensor: Tensor, cut: Cut | None) -> Tensor:
    """What stays, as a copy."""
    return tensor.index_select(cut[0], cut[1].to(tensor.device)) if cut else tensor.clone()


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, tensor)
