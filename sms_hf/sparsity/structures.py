"""Units that can be removed as a whole: neurons of feed-forward layers, attention heads, filters of convolutions."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from .prunable import CONVOLUTIONS, PROTECTED_PARTS, check_module_patterns, is_outside_base_model, matches, matrix_dims

NEURONS = (
    (("wi_0", "wi_1"), "wo"),  # T5 v1.1, mT5, UMT5
    (("wi",), "wo"),  # T5
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Gemma, Qwen
    (("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, ELECTRA
    (("c_fc",), "c_proj"),  # GPT-2
    (("fc1", "dwconv.dwconv"), "fc2"),  # SegFormer: a depthwise convolution filters every neuron on its own.
    (("fc1",), "fc2"),  # Marian, BART, mBART, M2M100, OPT, Whisper, ViT
    (("lin1",), "lin2"),  # DistilBERT
)
"""Feed-forward layers: (maps into the neurons, map out of them), relative to the module that holds them."""

HEADS = (
    ({"q": 1, "k": 1, "v": 1}, "o", "key_value_proj_dim"),  # T5, mT5
    ({"self.query": 1, "self.key": 1, "self.value": 1}, "output.dense", "self.attention_head_size"),  # BERT, RoBERTa
    ({"q_proj": 1, "k_proj": 1, "v_proj": 1}, "o_proj", "head_dim"),  # Llama, Mistral, ViT, SegFormer
    ({"q_proj": 1, "k_proj": 1, "v_proj": 1}, "out_proj", "head_dim"),  # Marian, BART, mBART, M2M100, OPT, Whisper
    ({"q_lin": 1, "k_lin": 1, "v_lin": 1}, "out_lin", "attention_head_size"),  # DistilBERT
    ({"q_attn": 1, "c_attn": 2}, "c_proj", "head_dim"),  # GPT-2's attention to an encoder
    ({"c_attn": 3}, "c_proj", "head_dim"),  # GPT-2
)
"""
Attention layers: (maps into the heads -> how many of q, k, v each holds side by side, map out, attribute of the size of a
head). The layer knows that size, whichever field of the configuration (encoder, decoder, stage) it came from.
"""


@dataclass(frozen=True)
class Member:
    """
    One parameter of a group.

    Attributes:
        parameter (`str`): Its name in the model.
        dim (`int`): The dimension along which the units lie, each a block of neighbours.
        parts (`int`): How often the sequence of units is repeated: 3 for GPT-2's `c_attn`, which holds all of q, then all
            of k, then all of v.
    """

    parameter: str
    dim: int
    parts: int = 1

    def index(self, size: int, units: int) -> Tensor:
        """Positions along `dim` (of length `size`) that belong to each unit: `(units, size // units)`, int64."""
        return torch.arange(size).reshape(self.parts, units, -1).transpose(0, 1).reshape(units, -1)


@dataclass(frozen=True)
class Group:
    """
    A layer whose units can be removed one by one: all its members lose the same units.

    Attributes:
        kind (`str`): A key of `STRUCTURES`.
        layer (`str`): Name of the module that holds the units.
        units (`int`): Their number. With grouped keys and values a unit of `"heads"` is one head of the keys with all its
            heads of the queries.
        members (`tuple[Member, ...]`): All parameters that lose something, biases included.
    """

    kind: str
    layer: str
    units: int
    members: tuple[Member, ...]

    def spread(self, member: Member, shape: torch.Size, kept: Tensor) -> Tensor:
        """bool `(units,)` -> bool of the member's `shape`, `True` = kept."""
        along = torch.empty(shape[member.dim], dtype=torch.bool)
        along[member.index(shape[member.dim], self.units)] = kept.cpu().unsqueeze(1)
        return along.reshape([-1 if d == member.dim else 1 for d in range(len(shape))]).expand(shape).contiguous()

    def gather(self, member: Member, tensor: Tensor) -> Tensor:
        """The member's entries a unit: `(units, entries)`."""
        index = self.member_index(member, tensor)
        return tensor.detach().movedim(member.dim, 0)[index].reshape(self.units, -1)

    def member_index(self, member: Member, tensor: Tensor) -> Tensor:
        return member.index(tensor.shape[member.dim], self.units).to(tensor.device)


def find_groups(
    model: nn.Module,
    kind: str,
    target_modules: str | list[str] | None = None,
    exclude_modules: str | list[str] | None = None,
) -> list[Group]:
    """
    Find the layers of a model whose units can be removed.

    By default all of them but task heads (whatever lies outside the base model of a `PreTrainedModel`), routers and
    poolers. Layers with a frozen or a tied parameter are left out.

    Args:
        model (`nn.Module`): The model.
        kind (`str`): `"neurons"`, `"heads"` or `"filters"`.
        target_modules (`str` or `list[str]`, *optional*): In the notation of [`find_prunable`]. Only layers that it
            matches, by the layer's name or by the names of all its linear maps.
        exclude_modules (`str` or `list[str]`, *optional*): Not layers that it matches, by the layer's name or by the name
            of any of its linear maps.

    Returns:
        `list[Group]`: In the model's order.

    Raises:
        ValueError: If there is none.
    """
    check_module_patterns(target_modules, exclude_modules)
    targets = None if target_modules == "all-linear" else target_modules
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names_of = Counter(id(p) for p in parameters.values())

    def is_free(group: Group) -> bool:
        found = [parameters[member.parameter] for member in group.members]
        return all(p.requires_grad and names_of[id(p)] == 1 for p in found)

    finder = STRUCTURES[kind][0]
    groups = [g for g in finder(model) if is_free(g) and _is_wanted(model, g, targets, exclude_modules)]
    if not groups:
        raise ValueError(
            f"Expected {kind} to prune in {type(model).__name__}, found none with target_modules={target_modules!r}, "
            f"exclude_modules={exclude_modules!r}. Looked for {STRUCTURES[kind][1]}, neither frozen nor tied."
        )
    return groups


def _is_wanted(model: nn.Module, group: Group, targets, excluded) -> bool:
    modules = list(dict.fromkeys(member.parameter.rpartition(".")[0] for member in group.members))
    if excluded is not None and any(matches(name, excluded) for name in [group.layer, *modules]):
        return False
    if targets is not None:
        return matches(group.layer, targets) or all(matches(name, targets) for name in modules)
    protected = any(part in group.layer.lower() for part in PROTECTED_PARTS)
    return not protected and not any(is_outside_base_model(model, name) for name in modules)


def _find_neurons(model: nn.Module) -> Iterator[Group]:
    modules = dict(model.named_modules())
    for layer in modules:
        for inputs, output in NEURONS:
            maps = _maps(modules, layer, [*inputs, output])
            if maps is None:
                continue
            units = _size(maps[-1], into=False)
            if all(_size(m, into=True) == units for m in maps[:-1]):
                into = [member for name, m in zip(inputs, maps[:-1], strict=True) for member in _into(layer, name, m)]
                yield Group("neurons", layer, units, (*into, _out_of(layer, output, maps[-1])))
                break


def _find_heads(model: nn.Module) -> Iterator[Group]:
    modules = dict(model.named_modules())
    for layer, module in modules.items():
        for inputs, output, head_size in HEADS:
            maps = _maps(modules, layer, [*inputs, output])
            if maps is None:
                continue
            width = attrgetter(head_size)(module)
            parts = list(inputs.values())
            units = min(_size(m, into=True) // p // width for m, p in zip(maps[:-1], parts, strict=True))
            sizes = [_size(m, into=True) // p for m, p in zip(maps[:-1], parts, strict=True)]
            if units and all(size % units == 0 for size in [*sizes, _size(maps[-1], into=False)]):
                into = [
                    member
                    for (name, p), m in zip(inputs.items(), maps[:-1], strict=True)
                    for member in _into(layer, name, m, p)
                ]
                yield Group("heads", layer, units, (*into, _out_of(layer, output, maps[-1])))
                break


def _find_filters(model: nn.Module) -> Iterator[Group]:
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            yield Group("filters", name, module.weight.shape[0], tuple(_into(name, "", module)))


STRUCTURES: dict[str, tuple[Callable[[nn.Module], Iterator[Group]], str]] = {
    "neurons": (_find_neurons, "modules that hold " + ", ".join("/".join([*i, o]) for i, o in NEURONS)),
    "heads": (_find_heads, "modules that hold " + ", ".join("/".join([*i, o]) for i, o, _ in HEADS)),
    "filters": (_find_filters, "nn.Conv1d, nn.Conv2d and nn.Conv3d inside the base model"),
}
"""Structured pattern -> (finder of its groups, what it looks for, in words)."""


def _maps(modules: dict[str, nn.Module], layer: str, names: list[str]) -> list[nn.Module] | None:
    """The linear maps of these names, or None if one is missing. A convolution counts where it is depthwise."""
    found = [modules.get(_join(layer, name)) for name in names]
    if any(m is None or matrix_dims(m) is None for m in found):
        return None
    if any(isinstance(m, CONVOLUTIONS) and m.weight.shape[1] != 1 for m in found):
        return None
    return [m for m in found if m is not None]


def _size(module: nn.Module, *, into: bool) -> int:
    """Length of a map's output (`into` the units) or input dimension."""
    out_dim, in_dim = matrix_dims(module) or (0, 1)
    return module.get_parameter("weight").shape[out_dim if into else in_dim]


def _into(layer: str, name: str, module: nn.Module, parts: int = 1) -> Iterator[Member]:
    out_dim, _ = matrix_dims(module) or (0, 1)
    yield Member(_join(layer, name, "weight"), out_dim, parts)
    if isinstance(module.bias, nn.Parameter):
        yield Member(_join(layer, name, "bias"), 0, parts)


def _out_of(layer: str, name: str, module: nn.Module) -> Member:
    _, in_dim = matrix_dims(module) or (0, 1)
    return Member(_join(layer, name, "weight"), in_dim)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
