"""A model out of parts of another one's tensors: of the same class, by a configuration with smaller numbers."""

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

Cut = tuple[int, Tensor]
"""Dimension of a tensor, int64 positions along it that stay."""


def rebuild(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    kept: Mapping[str, Cut],
    source: Callable[[str], str] = lambda name: name,
) -> PreTrainedModel:
    """
    A new model of the same class that shares no memory with `model`, with its dtype, device, training mode, ties and
    generation settings.

    Args:
        config (`PreTrainedConfig`): Of the new model.
        kept (`Mapping`): Tensor that becomes smaller -> what stays of it.
        source (`Callable`, *optional*): Name of a tensor in the new model -> its name in `model`.
    """
    small = skeleton(model, copy.deepcopy(config))
    memo: dict[int, nn.Parameter] = {}  # Ties stay ties.
    there = dict(tensors(model))
    for name, _ in list(tensors(small)):
        tensor, cut = there[source(name)], kept.get(source(name))
        if not isinstance(tensor, nn.Parameter):
            _set(small, name, _cut(tensor, cut))
            continue
        if id(tensor) not in memo:
            memo[id(tensor)] = nn.Parameter(_cut(tensor, cut), tensor.requires_grad)
        _set(small, name, memo[id(tensor)])
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small.train(model.training)


def check_plain(model: object, function: str) -> None:
    """Raise `ValueError` for what is no model of transformers itself."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{function} needs a PreTrainedModel of transformers, got {type(model).__name__}. Pass the model inside of it; "
            "from a PeftModel, `merge_and_unload()` makes one."
        )


def misfit(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    kept: Mapping[str, Cut],
    source: Callable[[str], str] = lambda name: name,
    gone: tuple[str, ...] = (),
) -> str:
    """
    Why a stock model of a configuration is not what stays of a model; empty if it is.

    Args:
        config, kept, source: As in [`rebuild`].
        gone (`tuple[str, ...]`): Starts of the names of tensors that go.
    """
    try:
        # As `from_pretrained` will: only what a saved configuration holds may count.
        stock = skeleton(model, type(config).from_dict(config.to_dict()))
    except (StrictDataclassError, ValueError) as error:
        return f"a smaller {type(config).__name__} is not valid: {str(error).splitlines()[-1].strip()}"
    stays = {name: shape(tensor, kept.get(name)) for name, tensor in tensors(model)}
    found = {name: shape(tensor) for name, tensor in tensors(stock)}
    needed = {name: stays[source(name)] for name in found if source(name) in stays}
    used = {source(name) for name in found}
    needed |= {name: size for name, size in stays.items() if name not in used and not name.startswith(gone)}
    for name in needed | found:
        if needed.get(name) != found.get(name):
            shapes = [sizes.get(name, "nothing") for sizes in (needed, found)]
            return f"{name} would be {shapes[0]}, but in a stock {type(model).__name__} it is {shapes[1]}"
    return ""


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
