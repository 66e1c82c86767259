"""Models of a recipe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel

from ..inference import choose_layers, drop_layers
from .data import from_hub

CALIBRATION = (8, 32)
"""Batches, and rows of each, by which layers are chosen."""


def model_for_classes(
    auto_class: Any, name: str, names: Sequence[str], seed: int, instead: str
) -> tuple[PreTrainedModel, list[str]]:
    """
    A classifier of rows, images or pixels, and the names of the classes in the order of its outputs.

    A head that is not for these classes is replaced, and a line says so.

    Args:
        auto_class (`type`): For example `AutoModelForImageClassification`.
        names (`Sequence[str]`): Classes of the data; numbers stand for the model's own, in order.
        seed (`int`): Of a new head; the global generator is left alone.
        instead (`str`): As in [`from_hub`].
    """
    config: Any = from_hub(name, lambda: AutoConfig.from_pretrained(name), instead)
    theirs, names = [config.id2label[i] for i in range(config.num_labels)], list(names)
    order = common_order(theirs, names)
    if not (order and all(label.isdigit() for label in names)):
        config.id2label = dict(enumerate(order or names))
        config.label2id = {label: i for i, label in config.id2label.items()}
    options = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = from_hub(name, lambda: auto_class.from_pretrained(name, **options), instead)
        new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if order is None and not new:  # As many classes, but others.
            body, model = model.base_model.state_dict(), auto_class.from_config(config)
            model.base_model.load_state_dict(body)
            new = [key for key, _ in model.named_parameters() if not key.startswith(f"{model.base_model_prefix}.")]
    if new:
        print(f"{name} has no head for the classes {names} (its own: {theirs}): new are {', '.join(new)}.", flush=True)
    return model, order or names


def keep_layers(
    model: PreTrainedModel,
    keep: Mapping[str, int | None],
    data: Dataset,
    collate: Callable[[list[Any]], Any],
    quiet: bool = False,
) -> PreTrainedModel:
    """
    The model with so many layers of each stack, those that the loss of the first training rows needs most.

    Args:
        keep (`Mapping`): Stack -> number of layers, `None` for all; as in [`drop_layers`].
        data, collate: Training rows, and what makes a batch of them.
        quiet (`bool`, *optional*, defaults to `False`): Do not say which, as all but one of several processes should.
    """
    asked = {stack: number for stack, number in keep.items() if number is not None}
    if not asked:
        return model
    batches, size = CALIBRATION
    rows = [data[i] for i in range(min(batches * size, len(data)))]

    def calibration(model: torch.nn.Module):
        for start in range(0, len(rows), size):
            yield model(**collate(rows[start : start + size])).loss

    layers = choose_layers(model, asked, calibration)
    what = "; ".join(f"{stack}: {', '.join(map(str, kept))}" for stack, kept in layers.items())
    if not quiet:
        print(f"layers that stay, by the loss of {len(rows)} training rows: {what}", flush=True)
    return drop_layers(model, layers, calibration)


def common_order(theirs: list[str], names: list[str]) -> list[str] | None:
    """Our names in the order of the model's outputs; `None` where the model's classes are others."""
    ours = {name.lower(): name for name in names}
    if sorted(ours) == sorted(label.lower() for label in theirs):
        return [ours[label.lower()] for label in theirs]
    unnamed = all(name.isdigit() for name in names) or theirs == [f"LABEL_{i}" for i in range(len(theirs))]
    return names if unnamed and len(theirs) == len(names) else None
