"""What an optimizer remembers, across a resume and from a trunk to its branches."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from ...files.writing import whole_file

NUMBERS = "sms_hf.optimizer"
"""Entry of the file's metadata: what an optimizer keeps besides tensors."""


def keep_state_dtypes_(optimizer: torch.optim.Optimizer) -> None:
    """
    Let `load_state_dict` bring states back in the dtypes that they were saved in.

    torch casts them to the dtype of the weights. An optimizer that keeps float32 statistics of bfloat16 weights, as
    Adafactor does, would round them at every resume and end with another model.
    """
    saved: dict[str, Any] = {}

    def before(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved.update(state_dict)

    def after(optimizer: torch.optim.Optimizer) -> None:
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            cast = optimizer.state.get(parameter, {})
            for key, value in saved["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.dtype != cast[key].dtype:
                    cast[key] = value.to(parameter.device, copy=True)
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


def save_state(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write what an optimizer remembers of every parameter; not its learning rate or other settings. No pickle."""
    tensors, numbers = {}, {}
    for parameter, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            is_tensor = isinstance(value, torch.Tensor)
            (tensors if is_tensor else numbers)[f"{parameter}.{key}"] = value.contiguous() if is_tensor else value
    with whole_file(path) as file:
        file.write(save(tensors, metadata={NUMBERS: json.dumps(numbers)}))


def go_on_with_(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Give a fresh optimizer what [`save_state`] wrote: moments and step counts; its settings stay its own."""
    state: dict[int, dict[str, Any]] = {}
    with safe_open(path, framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values |= json.loads(file.metadata()[NUMBERS])
    for name, value in values.items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
