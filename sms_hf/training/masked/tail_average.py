"""The mean of the weights that a training passes through near its end, in place of the last ones."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..plan.tail import TAIL_AVERAGES

FILE = "tail_average.safetensors"


class TailAverage:
    """
    A running mean of a model's trainable parameters, in float32 or what is finer.

    Under one mask the mean is as sparse as each of its parts; where the mask shrinks on the way, mask it at the end.

    Args:
        kind (`str`): A row of [`TAIL_AVERAGES`].
    """

    def __init__(self, kind: str):
        self._share = TAIL_AVERAGES[kind]
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, num_steps: int) -> None:
        """Take in the weights after a step, counted from 1."""
        share = self._share(step, num_steps)
        for name, weight in _trainable(model) if share > 0 else ():
            value = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            if name in self._mean:
                self._mean[name].lerp_(value, share)
            else:
                self._mean[name] = value.clone()

    @torch.no_grad()
    def put_(self, model: nn.Module) -> None:
        """Put the mean in place of the weights, as far as there is one."""
        for name, mean in self._mean.items():
            model.get_parameter(name).copy_(mean)

    def save(self, folder: Path) -> None:
        """Write the mean beside a checkpoint."""
        if self._mean:
            save_file(self._mean, folder / FILE)

    def load(self, folder: Path, device: torch.device | str) -> None:
        """Read the mean of a checkpoint back; there is none in one that was written before the first snapshot."""
        self._mean = load_file(folder / FILE, device=str(device)) if (folder / FILE).is_file() else {}


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
