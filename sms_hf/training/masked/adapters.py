"""
LoRA on a pruned model: `W + M * (s B A)`, in the forward pass as after merging.

The mask on the product is that of MaskLoRA (Zimmer, Andoni, Spiegel, Pokutta, "PERP", 2023): what an adapter learns where
the base is pruned could not be merged, so it is not learned. PEFT is imported where a model has its adapters, nowhere else.
"""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...sparsity.masks import Masks, plain_name

PLAIN_INITS = (True, "gaussian")
"""Of `init_lora_weights`: those that leave the base as it is, and begin with `B = 0`."""


def has_adapters(model: nn.Module) -> bool:
    """Whether this is a model that PEFT has wrapped."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_of(model: nn.Module) -> nn.Module:
    """The model itself, or the one inside its adapters."""
    return cast("Any", model).get_base_model() if has_adapters(model) else model


def take_adapters_(model: nn.Module) -> tuple[nn.Module, Any]:
    """
    Take fresh adapters off a model, in place.

    Returns:
        `tuple[nn.Module, LoraConfig]`: The base, whose weights may be pruned again, and what its candidates are to be given.

    Raises:
        ValueError: For adapters that are no plain LoRA, that were trained already, or more than one.
    """
    wrapped = cast("Any", model)
    configs = wrapped.peft_config
    config = next(iter(configs.values()))
    _check_config(config, len(configs), base_of(model))
    if any(bool(layer.lora_B[name].weight.any()) for _, layer in lora_layers(model) for name in layer.lora_B):
        raise ValueError(
            "Expected adapters that were not trained yet, got some whose product is not zero. Merge them into the base first: "
            "model.merge_and_unload()."
        )
    base = wrapped.unload().requires_grad_(True)
    return base, copy.deepcopy(config)


def _check_config(config: Any, number: int, base: nn.Module) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    wrong = {
        "one adapter": f"{number} of them" if number > 1 else "",
        "LoRA": kind if kind != "LORA" else "",
        "no use_dora": "it" if getattr(config, "use_dora", False) else "",
        "bias='none'": getattr(config, "bias", "none") if getattr(config, "bias", "none") != "none" else "",
        "no modules_to_save": getattr(config, "modules_to_save", None) or "",
        "no target_parameters": getattr(config, "target_parameters", None) or "",
        "no trainable_token_indices": getattr(config, "trainable_token_indices", None) or "",
        f"init_lora_weights of {PLAIN_INITS}": ""
        if getattr(config, "init_lora_weights", True) in PLAIN_INITS
        else config.init_lora_weights,
        "a base that is not quantized": "one that is" if getattr(base, "is_quantized", False) else "",
    }
    for expected, got in wrong.items():
        if got:
            raise ValueError(
                f"Adapters on a pruned model need {expected}, got {got}: only the product of plain LoRA can be merged with "
                "the zeros kept."
            )


def add_adapters(base: nn.Module, config: Any, masks: Masks, seed: int) -> nn.Module:
    """
    A model with fresh adapters, under the masks of its base.

    Args:
        base (`nn.Module`): Changed in place: PEFT puts its layers into it.
        config (`LoraConfig`): Left as it is.
        masks ([`Masks`]): Of the base.
        seed (`int`): Of `A`; the global generator is left alone.
    """
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(cast("Any", base), copy.deepcopy(config))
    mask_adapters_(model, masks)
    return model


def mask_adapters_(model: nn.Module, masks: Masks) -> None:
    """Let every LoRA layer whose base is masked compute with `W + M * (s B A)`; layers without a mask stay as they are."""
    for name, layer in lora_layers(model):
        mask = masks.get(f"{name}.weight")
        if mask is not None:
            base = layer.get_base_layer()
            vars(layer)["forward"] = _MaskedForward(layer, mask.to(base.weight.device))


class _MaskedForward:
    """The forward pass of one LoRA layer."""

    def __init__(self, layer: Any, mask: Tensor):
        self.layer, self.mask = layer, mask

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        result = layer.base_layer(x, *args, **kwargs)
        if layer.disable_adapters or layer.merged:
            return result
        (name,) = layer.active_adapters
        delta = masked_delta(layer, self.mask)
        # GPT-2's Conv1D holds (in, out), as its mask does.
        weight = delta.T if layer.fan_in_fan_out else delta
        return result + F.linear(layer.lora_dropout[name](x), weight.to(x.dtype)).to(result.dtype)


def masked_delta(layer: Any, mask: Tensor | None) -> Tensor:
    """`M * (s B A)` of a LoRA layer, in the shape of its base's weight; without a mask `s B A`."""
    (name,) = layer.active_adapters
    delta = layer.get_delta_weight(name)
    return delta if mask is None else delta * mask.to(delta.device)


@torch.no_grad()
def merge_lora(model: nn.Module, masks: Masks | None = None) -> nn.Module:
    """
    Put what LoRA has learned into the base, with its zeros kept: `W + M * (s B A)`.

    Args:
        model (`PeftModel`): Changed in place; its adapters are gone afterwards.
        masks ([`Masks`], *optional*): Of the base. Layers without a mask get the whole product.

    Returns:
        `nn.Module`: The base.

    Raises:
        MaskError: If a weight of the base is not zero where its mask is `False`.
    """
    for name, layer in lora_layers(model):
        mask = None if masks is None else masks.get(f"{name}.weight")
        weight = layer.get_base_layer().weight
        weight += masked_delta(layer, mask).to(weight.dtype)
    base = cast("Any", model).unload().requires_grad_(True)
    if masks is not None:
        masks.check(base)
    return base


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """LoRA layers of a model, each by the name of its base in the plain model."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield plain_name(name), module
