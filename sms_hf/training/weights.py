"""Weights of a live model from and to the folders of a run."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import logging

from ..files.checkpoint import Checkpoint
from ..files.folder import CheckpointError
from .adapters import base_of

ROWS = 1 << 30


@torch.no_grad()
def load_weights_(model: nn.Module, folder: str | Path) -> None:
    """
    Load every weight of a model from a folder, in place, tensor by tensor. Nothing may be missing or left over.

    For folders written with the names of the state dict ([`state_dict_names`]): `from_pretrained` converts names,
    `load_state_dict(strict=False)`, which Trainer uses, passes over what it does not find.

    Raises:
        CheckpointError: If a tensor is missing, unknown, or of another shape.
    """
    state = model.state_dict(keep_vars=True)
    with Checkpoint(folder) as checkpoint:
        unknown = [name for name in checkpoint.shapes if name not in state]
        loaded = {state[name].data_ptr() for name in checkpoint.shapes if name in state}
        # A tied tensor stands in the file under one of its names.
        computed = left_out_on_save(model)
        missing = [
            name
            for name, tensor in state.items()
            if tensor.numel() and tensor.data_ptr() not in loaded and name not in computed
        ]
        wrong = [n for n, shape in checkpoint.shapes.items() if n in state and tuple(state[n].shape) != shape]
        if unknown or missing or wrong:
            raise CheckpointError(
                f"{folder} must hold the weights of {type(model).__name__}; missing: {missing[:3]}, unknown: {unknown[:3]}, "
                f"of another shape: {wrong[:3]}."
            )
        for name in checkpoint.shapes:
            state[name].copy_(checkpoint.rows(name, 0, ROWS))


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


def forget_accelerate_(model: nn.Module) -> None:
    """
    Undo what an `evaluate()` did to a model, so that copies of it can be prepared for training.

    Accelerate marks a model as prepared and, in mixed precision, wraps its `forward`; copies would carry both, and train
    without autocast. (`Accelerator.unwrap_model(keep_fp32_wrapper=False)` strips the model's own decorators, too.)
    """
    vars(model).pop("_is_accelerate_prepared", None)
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        del vars(model)["forward"]
        if getattr(original, "__func__", None) is not type(model).forward:
            vars(model)["forward"] = original


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


def shifts_labels(model: nn.Module) -> bool:
    """
    Whether the loss compares position i with label i + 1, so that the first label of a row is no target.

    Trainer decides it by the model's `loss_type`, which GPT-2 and others leave at `None` although their loss shifts.
    """
    model = base_of(model)
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    return not ignores_num_items_in_batch(model) and model.loss_function is ForCausalLMLoss


def ignores_num_items_in_batch(model: nn.Module) -> bool:
    """
    Whether the model's loss is a plain mean although its `forward(**kwargs)` accepts `num_items_in_batch`.

    Trainer takes `**kwargs` for the promise to divide by the number of targets in the whole accumulated batch. T5, Marian,
    MBart, M2M100 and others do not keep it, and gradients grow with `gradient_accumulation_steps`. Models that do keep it
    compute their loss by `self.loss_function`.
    """
    model = base_of(model)
    if not isinstance(model, PreTrainedModel):
        return False
    names = inspect.unwrap(type(model).forward).__code__.co_names
    return "loss_function" not in names and "num_items_in_batch" not in names
