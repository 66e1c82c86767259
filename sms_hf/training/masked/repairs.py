"""Repairs for the places where Trainer or Accelerate would break a comparison of candidates."""

import inspect

from torch import nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from .adapters import base_of


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
