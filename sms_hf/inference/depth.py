"""Whole layers removed: a less deep model of the same stock class."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..choices import check_choice
from ..sparsity.calibration import Calibration, check_batches
from ..sparsity.evaluating import evaluating
from .rebuilding import check_plain, misfit, rebuild

FIELDS = {
    "encoder": ("encoder_layers", "num_layers"),  # Marian, BART, M2M100, Whisper; T5
    "decoder": ("decoder_layers", "num_decoder_layers"),
    "": (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
    ),  # BERT, Llama, ViT, OPT; GPT-2; DistilBERT; T5 encoders
}
"""Part of a stack's name -> fields of the configuration that may hold its depth. The first that fits counts."""

LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Fields that say something of each layer of a decoder."""

FIRST_LAYER = "relative_attention_bias.weight"
"""T5: what the first layer of a stack has for all of them."""

Layers = Mapping[str, Sequence[int]]
"""Stack (`"encoder"`, `"decoder"`, or `"layers"` where there is one only) -> positions of the layers that stay, ascending."""


@dataclass(frozen=True)
class Stack:
    """The layers that one field of the configuration counts."""

    path: str
    field: str
    layers: nn.ModuleList


@torch.no_grad()
def drop_layers(
    model: PreTrainedModel,
    keep: int | Mapping[str, int | Sequence[int]],
    calibration: Calibration | None = None,
    criterion: str = "loss",
) -> PreTrainedModel:
    """
    Remove whole layers, to retrain what stays: fewer layers make every engine faster, whatever it does with zeros.

    What is removed is a block with its residual connection: what enters it is what leaves it. For that no weights can be set
    to zero in models that normalise after the addition (BERT, Marian, BART), so the layers go before the training, and
    pruning of neurons or weights can follow in the run: `SparseSoupTrainer(drop_layers(model, ...), ...)`.

    Args:
        model (`PreTrainedModel`): The model, such as T5, Marian, BART, BERT, GPT-2, Llama or ViT. It does not change.
        keep (`int` or `Mapping`): How many layers stay, of a model with one stack; `{"decoder": 2}`, `{"encoder": 4,
            "decoder": 1}` where there are two, what is not named staying whole. In place of a number the positions of those
            that stay, ascending: `{"decoder": [0, 5]}`.
        calibration (`Callable`, *optional*): model -> the loss of each of a few batches, `lambda model:
            (model(**batch).loss for batch in batches)`; needed to choose. Where given, the result must have the loss of the
            model without these layers.
        criterion (`str`, *optional*, defaults to `"loss"`): Which layers go: [`choose_layers`].

    Returns:
        `PreTrainedModel`: A new model that shares no memory with `model`, of its class, dtype, device and training mode.

    Raises:
        ValueError: If there are no such stacks or layers, they cannot be chosen, or a stock model without them computes
            something else. The model is unchanged.
    """
    layers = choose_layers(model, keep, calibration, criterion)
    stacks = find_stacks(model)
    config = _shallower(model.config, stacks, layers)
    source = _renaming(stacks, layers)
    gone = [(name, i) for name in stacks for i in _others(stacks, layers, name)]
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "A GPT-2 with scale_attn_by_inverse_layer_idx divides by the position of each layer, so it cannot lose layers."
        )
    wrong = misfit(model, config, {}, source, tuple(f"{stacks[name].path}.{i}." for name, i in gone))
    if wrong:
        raise ValueError(f"{type(model).__name__} cannot lose these layers: {wrong}.")
    small = rebuild(model, config, {}, source)
    if calibration is not None:
        _check_loss(model, small, [stacks[name].layers[i] for name, i in gone], calibration)
    return small


@torch.no_grad()
def choose_layers(
    model: PreTrainedModel,
    keep: int | Mapping[str, int | Sequence[int]],
    calibration: Calibration | None = None,
    criterion: str = "loss",
) -> dict[str, list[int]]:
    """
    The layers that [`drop_layers`] keeps.

    Args:
        model, keep, calibration: As in [`drop_layers`].
        criterion (`str`, *optional*, defaults to `"loss"`):

            - `"loss"`: one after the other, the layer without which the mean loss of the batches is lowest (SLEB, Song et al.,
              ICML 2024). Reads the batches once for every layer that may go.
            - `"influence"`: those that turn their input least, by `1 - mean(cos(input, output))` over all tokens, padding
              included (the Block Influence of ShortGPT, Men et al. 2024). Reads the batches once.

    Returns:
        `dict[str, list[int]]`: Stack -> positions of the layers that stay, ascending; all stacks of the model.

    Raises:
        ValueError: As [`drop_layers`].
    """
    check_choice("criterion", criterion, sorted(CHOOSERS))
    stacks = find_stacks(model)
    asked = _asked(model, stacks, keep)
    layers = {name: list(value) for name, value in asked.items() if not isinstance(value, int)}
    numbers = {name: number for name, number in asked.items() if isinstance(number, int)}
    if any(number < len(stacks[name].layers) for name, number in numbers.items()):
        if calibration is None:
            raise ValueError(
                "Expected calibration batches to choose the layers that stay, got none. Pass calibration=lambda model: "
                '(model(**batch).loss for batch in batches), or name the layers: keep={"'
                + next(iter(numbers))
                + '": [0, 1]}.'
            )
        gone = [stacks[name].layers[i] for name in layers for i in _others(stacks, layers, name)]
        with evaluating(model):
            layers |= CHOOSERS[criterion](model, {name: stacks[name] for name in numbers}, numbers, gone, calibration)
    return {name: layers.get(name, list(range(len(stacks[name].layers)))) for name in stacks}


def find_stacks(model: PreTrainedModel) -> dict[str, Stack]:
    """
    Name -> stack of layers: `"encoder"` and `"decoder"`, or `"layers"` of a model that has one only.

    Raises:
        ValueError: If there are none whose number the configuration holds, or this is no plain `PreTrainedModel`.
    """
    check_plain(model, "drop_layers")
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "drop_layers needs a model that is not quantized. Load it without, and quantize what it returns."
        )
    numbers = {name: value for name, value in model.config.to_dict().items() if type(value) is int}
    found: dict[str, Stack] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{s.path}.") for s in found.values()):
            continue
        part = next((part for part in ("encoder", "decoder") if part in path.split(".")), "")
        fields = [*FIELDS[part], *(FIELDS[""] if part else ())]
        field = next((f for f in fields if numbers.get(f) == len(module)), None)
        if field is not None and field not in (s.field for s in found.values()):
            found[part or "layers"] = Stack(path, field, module)
    if not found:
        raise ValueError(
            f"Expected a stack of layers in {type(model).__name__} whose number stands in its configuration as one of "
            f"{', '.join(dict.fromkeys(f for fields in FIELDS.values() for f in fields))}, found none."
        )
    return found if len(found) > 1 else {"layers": next(iter(found.values()))}


# ---- Which -------------------------------------------------------------------------------------------------------------


def _asked(model: PreTrainedModel, stacks: Mapping[str, Stack], keep: Any) -> dict[str, int | Sequence[int]]:
    """What was asked for, by the names of the stacks, checked."""
    if isinstance(keep, int):
        if len(stacks) > 1:
            raise ValueError(
                f"{type(model).__name__} has the stacks {', '.join(stacks)}: expected keep={{'decoder': {keep}}} or the like, "
                f"got keep={keep}."
            )
        keep = dict.fromkeys(stacks, keep)
    elif len(stacks) == 1 and len(keep) == 1 and next(iter(keep)) in FIELDS:
        keep = dict(zip(stacks, keep.values(), strict=True))  # "encoder" of a BERT.
    for name, value in keep.items():
        check_choice("keep", name, stacks)
        number = len(stacks[name].layers)
        if isinstance(value, int):
            if not 1 <= value <= number:
                raise ValueError(f"keep must lie between 1 and {number} for {name!r}, got {value}.")
        elif not value or list(value) != sorted(set(value)) or not 0 <= value[0] <= value[-1] < number:
            raise ValueError(
                f"keep must name layers of {name!r} by positions from 0 to {number - 1}, ascending, got {list(value)}."
            )
    return {name: keep.get(name, len(stack.layers)) for name, stack in stacks.items()}


def _by_loss(
    model: PreTrainedModel,
    stacks: Mapping[str, Stack],
    numbers: Mapping[str, int],
    gone: Sequence[nn.Module],
    calibration: Calibration,
) -> dict[str, list[int]]:
    stay = {name: list(range(len(stack.layers))) for name, stack in stacks.items()}
    dropped = list(gone)
    while may := [(name, i) for name, kept in stay.items() if len(kept) > numbers[name] for i in kept]:
        name, i = min(may, key=lambda at: _loss(model, [*dropped, stacks[at[0]].layers[at[1]]], calibration))
        stay[name].remove(i)
        dropped.append(stacks[name].layers[i])
    return stay


def _by_influence(
    model: PreTrainedModel,
    stacks: Mapping[str, Stack],
    numbers: Mapping[str, int],
    gone: Sequence[nn.Module],
    calibration: Calibration,
) -> dict[str, list[int]]:
    influence = {name: [0.0] * len(stack.layers) for name, stack in stacks.items()}

    def watch(name: str, i: int) -> Callable[..., None]:
        def look(_, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            pair = (_first(args, kwargs), output[0] if isinstance(output, tuple) else output)
            cosine = torch.cosine_similarity(*(x.float() for x in pair), dim=-1)
            influence[name][i] += float(1 - cosine.mean())

        return look

    hooks = [(layer, watch(name, i)) for name, stack in stacks.items() for i, layer in enumerate(stack.layers)]
    with _hooked(hooks):
        _loss(model, gone, calibration)
    ranked = {name: sorted(range(len(values)), key=lambda i: -values[i]) for name, values in influence.items()}
    return {name: sorted(order[: numbers[name]]) for name, order in ranked.items()}


CHOOSERS = {"influence": _by_influence, "loss": _by_loss}


def _loss(model: PreTrainedModel, dropped: Iterable[nn.Module], calibration: Calibration) -> float:
    """Mean loss of the calibration batches without some layers."""
    with _without(dropped):
        losses = [float(loss) for loss in calibration(model)]
    check_batches(len(losses))
    return sum(losses) / len(losses)


def _without(layers: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """What enters these layers leaves them. They run nevertheless: the first of a T5 makes the position bias of all."""

    def bypass(_, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        states = _first(args, kwargs)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return _hooked((layer, bypass) for layer in layers)


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks of layers, while this lasts: functions of the layer, its arguments and its output."""
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _others(stacks: Mapping[str, Stack], layers: Layers, name: str) -> list[int]:
    return [i for i in range(len(stacks[name].layers)) if i not in layers[name]]


# ---- The smaller model -------------------------------------------------------------------------------------------------


def _shallower(config: PreTrainedConfig, stacks: Mapping[str, Stack], layers: Layers) -> PreTrainedConfig:
    values, small = config.to_dict(), copy.deepcopy(config)
    for name, stack in stacks.items():
        before, after = len(stack.layers), len(layers[name])
        setattr(small, stack.field, after)
        if stack.field == "encoder_layers" and "num_hidden_layers" in values:
            small.num_hidden_layers = after  # BART's second name for it.
        for field in LISTS:
            if len(stacks) == 1 and isinstance(values.get(field), list) and len(values[field]) == before:
                setattr(small, field, [values[field][i] for i in layers[name]])
    return small


def _renaming(stacks: Mapping[str, Stack], layers: Layers) -> Callable[[str], str]:
    """Name of a tensor in the smaller model -> its name in the model."""

    def source(name: str) -> str:
        for key, stack in stacks.items():
            if name.startswith(f"{stack.path}."):
                position, _, rest = name.removeprefix(f"{stack.path}.").partition(".")
                own = layers[key][int(position)]
                first = rest.endswith(FIRST_LAYER) and not _has(stack.layers[own], rest)
                return f"{stack.path}.{0 if first else own}.{rest}"
        return name

    return source


def _has(layer: nn.Module, name: str) -> bool:
    return any(name == own for own, _ in layer.named_parameters())


def _check_loss(
    model: PreTrainedModel, small: PreTrainedModel, dropped: Sequence[nn.Module], calibration: Calibration
) -> None:
    with evaluating(model), evaluating(small):
        expected, got = _loss(model, dropped, calibration), _loss(small, (), calibration)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if abs(got - expected) > tolerance * max(1.0, abs(expected)):
        raise ValueError(
            f"Expected the loss of {type(model).__name__} without these layers, {expected:.4g}, from the smaller model, got "
            f"{got:.4g}. Its layers depend on their positions, or the calibration batches differ from call to call."
        )
