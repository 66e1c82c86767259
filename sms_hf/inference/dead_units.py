"""Which neurons and attention heads contribute nothing to what a model computes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from ..sparsity.structures import Group

ACTIVATIONS = ("dense_act_fn", "hidden_act", "activation_function", "activation")
"""Fields that name the activation of the neurons."""

GATES = ("wi_0", "gate_proj")
"""Maps whose activated outputs are multiplied with those of another map into the neurons."""


def _dead_neurons(model: PreTrainedModel, group: Group) -> Tensor:
    """Neurons that contribute nothing: bool `(units,)`."""
    zero = _zero_units(model, group)
    *into, out = zero.values()
    still = _activation_of_zero(model.config) == 0
    if next(iter(zero)).endswith(GATES):
        gate, factor = into
        return out | factor | (gate & still)
    return out | (torch.stack(into).all(0) & still)


def _dead_heads(model: PreTrainedModel, group: Group) -> Tensor:
    """Heads that contribute nothing: bool `(units,)`. The last map into the heads holds the values."""
    *_, value, out = _zero_units(model, group).values()
    return out | value


def _zero_units(model: PreTrainedModel, group: Group) -> dict[str, Tensor]:
    """Name of a map -> units whose weights and bias in it are all zero. Of fused maps the last part counts: the values."""
    zero: dict[str, Tensor] = {}
    for member in group.members:
        name = member.parameter.rpartition(".")[0]
        entries = group.gather(member, model.get_parameter(member.parameter)).reshape(group.units, member.parts, -1)
        zero[name] = (entries[:, -1] == 0).all(1).cpu() & zero.get(name, torch.ones(group.units, dtype=torch.bool))
    return zero


def _activation_of_zero(config: PreTrainedConfig) -> float:
    """NaN where the activation is not known by name."""
    known = config.to_dict()
    name = next((known[field] for field in ACTIVATIONS if field in known), None)
    return float(ACT2FN[name](torch.zeros(1))) if name in ACT2FN else math.nan


DEAD: dict[str, Callable[[PreTrainedModel, Group], Tensor]] = {"neurons": _dead_neurons, "heads": _dead_heads}
