"""Weights of a live model from and to the folders of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...files.checkpoint import Checkpoint
from ...files.folder import CheckpointError


class Source(Protocol):
    """Tensors by name: a [`Checkpoint`], or an average of several."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> torch.Tensor: ...


def load_weights_(model: nn.Module, folder: str | Path) -> None:
    """
    Load every weight of a model from a folder, in place, tensor by tensor. Nothing may be missing or left over.

    For folders written with the names of the state dict ([`state_dict_names`]): `from_pretrained` converts names,
    `load_state_dict(strict=False)`, which Trainer uses, passes over what it does not find.

    Raises:
        CheckpointError: If a tensor is missing, unknown, or of another shape.
    """
    with Checkpoint(folder) as checkpoint:
        load_tensors_(model, checkpoint)


@torch.no_grad()
def load_tensors_(model: nn.Module, source: Source) -> None:
    """As [`load_weights_`], from anything that holds tensors by name."""
    state = model.state_dict(keep_vars=True)
    unknown = [name for name in source.shapes if name not in state]
    loaded = {state[name].data_ptr() for name in source.shapes if name in state}
    # A tied tensor stands in the file under one of its names.
    computed = left_out_on_save(model)
    missing = [
        name
        for name, tensor in state.items()
        if tensor.numel() and tensor.data_ptr() not in loaded and name not in computed
    ]
    wrong = [n for n, shape in source.shapes.items() if n in state and tuple(state[n].shape) != shape]
    if unknown or missing or wrong:
        raise CheckpointError(
            f"{source.folder} must hold the weights of {type(model).__name__}; missing: {missing[:3]}, unknown: {unknown[:3]}, "
            f"of another shape: {wrong[:3]}."
        )
    for name in source.shapes:
        state[name].copy_(source.tensor(name))


def left_out_on_save(model: nn.Module) -> set[str]:
    """Names of the state dict that a class leaves out of its files because it computes them: Marian's positions."""
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())


def freeze_left_out_(model: nn.Module) -> None:
    """
    Keep what no file will hold from being trained: the training would be lost with the next save.

    A fresh Marian has its sinusoidal positions frozen; `from_pretrained` gives them back as if they were to be learned.
    """
    for name in left_out_on_save(model):
        tensor = model.state_dict(keep_vars=True).get(name)
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)


@contextmanager
def state_dict_names(model: nn.Module) -> Iterator[None]:
    """
    Let `model.save_pretrained` keep the names of the state dict while the context lasts.

    Trainer reads checkpoints back by raw `load_state_dict(strict=False)`. Where `save_pretrained` converts names to
    those of the original files (ViT, Mixtral, ...), resuming and best-model loading restore nothing, with a warning only
    (huggingface/transformers#48805).
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    # On the instance, where it hides the method of the class.
    vars(model)["save_pretrained"] = partial(type(model).save_pretrained, model, save_original_format=False)
    try:
        yield
    finally:
        del vars(model)["save_pretrained"]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the bars of `save_pretrained`: a run writes many folders."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
