"""Pruned neurons and attention heads removed for real: a smaller model of the same stock class."""

import copy
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..sparsity.pruning import prune
from ..sparsity.structures import STRUCTURES, Group, Member
from .dead_units import DEAD
from .rebuilding import Cut, check_plain, misfit, rebuild, shape

FIELDS = {
    "neurons": (
        ("encoder", "encoder_ffn_dim"),  # Marian, BART, M2M100, Whisper
        ("decoder", "decoder_ffn_dim"),
        ("", "d_ff"),  # T5
        ("", "intermediate_size"),  # BERT, Llama, ViT
        ("", "n_inner"),  # GPT-2
        ("", "ffn_dim"),  # OPT
        ("", "hidden_dim"),  # DistilBERT
    ),
    "heads": (
        ("encoder", "encoder_attention_heads"),
        ("decoder", "decoder_attention_heads"),
        ("", "num_heads"),
        ("", "num_attention_heads"),
        ("", "n_head"),
        ("", "n_heads"),
    ),
}
"""Kind -> (part of the names of the layers that it is about, field of the configuration). The first that fits counts."""

INDEPENDENT_HEADS = ("t5", "mt5", "umt5", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "vit")
"""Types of models whose heads compute on their own and are known to survive the loss of others. Shapes cannot tell."""

POSITION_BIAS = "relative_attention_bias.weight"
"""T5: `(buckets, heads)`, added to the scores of every head."""


@dataclass(frozen=True)
class Change:
    """
    What becomes of the layers whose size one field of the configuration sets.

    Attributes:
        kind (`str`): `"neurons"` or `"heads"`.
        field (`str`): The field, such as `"d_ff"`; empty where the configuration has none.
        units (`int`): Neurons or heads of each layer. With grouped queries a head is one of the keys with all its queries.
        kept (`int`): How many of them each layer keeps.
        dead (`dict[str, int]`): Layer -> how many of its units contribute nothing.
        reason (`str`): Why units that are dead stay; empty where all of them go.
    """

    kind: str
    field: str
    units: int
    kept: int
    dead: dict[str, int]
    reason: str

    def __str__(self) -> str:
        text = f"{self.field or 'no field'}: {self.units} -> {self.kept} {self.kind} in each of {len(self.dead)} layers"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True)
class Shrinking:
    """
    What [`shrink`] does to a model. `str()` of it is a report.

    Attributes:
        changes (`tuple[Change, ...]`): One for each size of layers.
        config (`PreTrainedConfig`): That of the smaller model.
        kept (`dict[str, tuple[int, Tensor]]`): Parameter that becomes smaller -> dimension and int64 positions that stay.
        num_parameters (`tuple[int, int]`): Before and after, tied ones counted once.
    """

    changes: tuple[Change, ...]
    config: PreTrainedConfig
    kept: dict[str, Cut]
    num_parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.num_parameters
        return "\n".join([f"{before:,} -> {after:,} parameters", *map(str, self.changes)])


@torch.no_grad()
def shrink(model: PreTrainedModel) -> PreTrainedModel:
    """
    Remove neurons and attention heads that contribute nothing: the same outputs from a smaller model of the same class.

    A neuron contributes nothing if all its weights in the map out of the layer are exactly zero, or if what enters that
    map is: all weights and biases into the neuron are zero (of a gated neuron: those of one factor), and its activation
    maps 0 to 0. A head contributes nothing if all its weights in the output map are zero, or all weights and biases of
    its values. `prune(..., pattern="neurons")` and `"heads"` make such units.

    The result saves and loads with plain transformers, which knows one size for all layers of a model, or of its encoder
    and of its decoder. So every layer loses as many units as the layer that can spare the fewest, and keeps the rest as
    zeros. Heads go only from the types in `INDEPENDENT_HEADS` (T5, Llama, Mistral, Qwen, Gemma, ViT), whose
    configuration can hold the size of a head; elsewhere (BERT, GPT-2, Marian, BART, OPT) a stock model takes hidden size
    / heads for it, and heads stay. In a T5 the self-attention layers of a stack share one position bias, so there only
    heads that are dead in all of them go.

    Args:
        model (`PreTrainedModel`): The model, in any dtype and on any device. It does not change.

    Returns:
        `PreTrainedModel`: A new model that shares no memory with `model`, of its class, dtype, device and training mode,
        with its ties and generation settings.

    Raises:
        ValueError: If there is nothing to remove; the message says why, as [`plan_shrinking`] does.
    """
    plan = plan_shrinking(model)
    if not plan.kept:
        raise ValueError(
            f"Expected neurons or heads that {type(model).__name__} can lose, found none:\n"
            + "\n".join(map(str, plan.changes))
            + "\nPrune whole units, as many in every layer: pruning_pattern='neurons' and pruning_scope='uniform'."
        )
    return rebuild(model, plan.config, plan.kept)


def try_shrinking(model: PreTrainedModel, pattern: str, sparsity: float) -> Shrinking:
    """What [`shrink`] would remove if `sparsity` of the `"neurons"` or `"heads"` were pruned; tried on a copy."""
    trial = copy.deepcopy(model)
    prune(trial, sparsity, scope="uniform", pattern=pattern)
    return plan_shrinking(trial)


@torch.no_grad()
def plan_shrinking(model: PreTrainedModel) -> Shrinking:
    """
    Find out what [`shrink`] removes, and why not more.

    Args:
        model (`PreTrainedModel`): The model. It does not change.

    Returns:
        [`Shrinking`]: `print` it, or look at its `changes`.

    Raises:
        ValueError: If `model` is no `PreTrainedModel`, or has neither feed-forward layers nor attention heads.
    """
    check_plain(model, "shrink")
    size = model.num_parameters()
    plan = Shrinking((), copy.deepcopy(model.config), {}, (size, size))
    for kind in FIELDS:
        for (field, units), groups in _layers_by_field(model, kind).items():
            plan = _extend(plan, model, kind, field, units, groups)
    if not plan.changes:
        raise ValueError(
            f"Expected feed-forward layers or attention heads in {type(model).__name__}, found none. "
            f"Looked for {STRUCTURES['neurons'][1]}; {STRUCTURES['heads'][1]}."
        )
    parameters = {name: model.get_parameter(name) for name in plan.kept}
    removed = sum(p.numel() - math.prod(shape(p, plan.kept[name])) for name, p in parameters.items())
    return replace(plan, num_parameters=(size, size - removed))


def _layers_by_field(model: PreTrainedModel, kind: str) -> dict[tuple[str, int], list[Group]]:
    """(Field of the configuration, units) -> layers of that size. The field is empty where there is none."""
    numbers = [name for name, value in model.config.to_dict().items() if value is None or isinstance(value, int)]
    found = defaultdict(list)
    # Not `find_groups`: it leaves out frozen layers, which can be smaller as well.
    for group in STRUCTURES[kind][0](model):
        parts = ["", *group.layer.split(".")]
        field = next((name for part, name in FIELDS[kind] if part in parts and name in numbers), "")
        found[field, group.units].append(group)
    return found


def _extend(
    plan: Shrinking, model: PreTrainedModel, kind: str, field: str, units: int, groups: list[Group]
) -> Shrinking:
    """The plan, and what becomes of the layers of one field."""
    dead = {group.layer: DEAD[kind](model, group) for group in groups}
    spare = _spare(model, groups, dead)
    limit = min([units - 1, *map(len, spare.values())])  # A layer keeps at least one.
    reason = _obstacle(model, kind, field, groups) if any(flags.any() for flags in dead.values()) else ""
    config, kept, count = plan.config, plan.kept, 0 if reason else limit
    reason, misfits = reason or _bottleneck(field, units, spare, dead), []
    while count:
        config = _resized(plan.config, model, groups[0], field, units - count)
        kept = plan.kept | {name: cut for g in groups for name, cut in _cuts(model, g, spare[g.layer][:count])}
        wrong = misfit(model, config, kept)
        if not wrong:
            break
        config, kept, misfits = plan.config, plan.kept, [*misfits, wrong]
        # The number of heads must divide the hidden size of some models: fewer may go. That of neurons is free.
        count = count - 1 if kind == "heads" else 0
    numbers = {layer: int(flags.sum()) for layer, flags in dead.items()}
    change = Change(kind, field, units, units - count, numbers, misfits[0] if misfits else reason)
    return replace(plan, changes=(*plan.changes, change), config=config, kept=kept)


def _obstacle(model: PreTrainedModel, kind: str, field: str, groups: list[Group]) -> str:
    """Why units of these layers stay, however many are dead; empty where nothing speaks against it."""
    if not field:
        return f"{type(model.config).__name__} has no number in any of {', '.join(name for _, name in FIELDS[kind])}"
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names_of = Counter(map(id, parameters.values()))
    tied = [m.parameter for g in groups for m in g.members if names_of[id(parameters[m.parameter])] > 1]
    if tied:
        return f"{tied[0]} is tied to another parameter"
    if kind == "heads" and model.config.model_type not in INDEPENDENT_HEADS:
        return (
            f"a stock {model.config.model_type} cannot have fewer heads of the same size, or its heads depend on each other; "
            f"they go only from {', '.join(INDEPENDENT_HEADS)}"
        )
    return ""


def _bottleneck(field: str, units: int, spare: dict[str, list[int]], dead: dict[str, Tensor]) -> str:
    """Why not all dead units go; empty if they do."""
    layer = min(spare, key=lambda name: len(spare[name]))
    count = len(spare[layer])
    if all(int(flags.sum()) <= min(count, units - 1) for flags in dead.values()):
        return ""
    if count == units:
        return "a layer keeps at least one"
    if count < int(dead[layer].sum()):
        return f"{count} are dead in all the layers that share one position bias, such as {layer}"
    return f"{layer} has {count} dead, and {field} holds for all"


def _spare(model: PreTrainedModel, groups: list[Group], dead: dict[str, Tensor]) -> dict[str, list[int]]:
    """Layer -> units that it may lose, lowest first. Layers that share a position bias must lose the same."""
    parameters = dict(model.named_parameters())
    stacks = defaultdict(list)
    for group in groups:
        stacks[re.sub(r"\.\d+\.", ".*.", group.layer, count=1)].append(group.layer)
    for layers in stacks.values():
        owners = [layer for layer in layers if f"{layer}.{POSITION_BIAS}" in parameters]
        if owners and len(owners) < len(layers):
            common = torch.stack([dead[layer] for layer in layers]).all(0)
            dead = dead | dict.fromkeys(layers, common)
    return {layer: flags.nonzero().flatten().tolist() for layer, flags in dead.items()}


def _cuts(model: PreTrainedModel, group: Group, gone: list[int]) -> Iterator[tuple[str, Cut]]:
    """Parameter -> what stays of it without these units."""
    members = [*group.members, Member(f"{group.layer}.{POSITION_BIAS}", 1)]
    parameters = dict(model.named_parameters())
    alive = torch.ones(group.units, dtype=torch.bool)
    alive[gone] = False
    for member in members:
        if member.parameter in parameters:
            index = member.index(parameters[member.parameter].shape[member.dim], group.units)
            yield member.parameter, (member.dim, index[alive].flatten().sort().values)


def _resized(
    config: PreTrainedConfig, model: PreTrainedModel, group: Group, field: str, units: int
) -> PreTrainedConfig:
    """The configuration for layers like `group` with as many units."""
    config = copy.deepcopy(config)
    if group.kind == "neurons":
        setattr(config, field, units)
        return config
    sizes = config.to_dict()
    out = group.members[-1]
    # Some take hidden size / heads for it unless it is said.
    config.head_dim = model.get_parameter(out.parameter).shape[out.dim] // sizes[field]
    for name in (field, "num_key_value_heads"):
        if sizes.get(name) is not None:
            setattr(config, name, sizes[name] * units // group.units)
    return config
