"""Layers that multiply in the fastest way for as many rows as there are: in place, exact, and back."""

from typing import TypeVar

from tabulate import tabulate
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .kernel import load_kernel
from .paths import DTYPES, PATHS, Fast, is_two_of_four

M = TypeVar("M", bound=nn.Module)
SMALLEST = 1 << 15
"""Weights of a layer below which choosing costs more than there is to gain."""


class FastLinear(nn.Linear):
    """A linear layer with the weights of a [`torch.nn.Linear`]."""

    fast: Fast

    def forward(self, input: Tensor) -> Tensor:
        return self.fast.multiply(input, self.weight, self.bias)


class FastConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is transposed."""

    fast: Fast

    def forward(self, x: Tensor) -> Tensor:
        return self.fast.multiply(x, self.weight.t(), self.bias)


FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}
"""Layer -> its fast form, which differs in `forward` alone."""


def speed_up(model: M, int8_head: bool = False) -> M:
    """
    Make the linear layers of a model faster, in place, where that is possible: for inference.

    On the CPU each layer multiplies in the way that is fastest for its shape, its zeros and the number of rows: as before;
    with weights that oneDNN has put in order; or with its kept weights alone, by a kernel that is compiled on first use (with
    a C compiler, as `torch.compile` needs one; without, by torch's CSR). On a GPU only layers that keep two of every four
    weights (`pruning_pattern="2:4"`) can be faster, by torch's semi-structured tensors. All are exact up to the rounding of
    sums. What is fastest is measured when a number of rows is first seen, in turn with the dense layer, which stays unless
    another way is faster by 5 %. Measurements and kernels are kept in `~/.cache/sms_hf`; packed weights lie in memory beside
    the ordinary ones.

    The model stays what it is: `generate`, `save_pretrained`, `deepcopy` and threads work as before, and changed weights are
    noticed (in place or by assignment; not through `weight.data`); after another pruning, call it again. Gradients are refused
    while this lasts: [`slow_down`].

    Args:
        model (`nn.Module`): On the CPU in float32 or bfloat16, or on a GPU in float16 or bfloat16; layers in other dtypes
            stay as they are.
        int8_head (`bool`, *optional*, defaults to `False`): Let the map to the vocabulary, which pruning leaves dense, use
            weights of 8 bits where that is faster (few rows: greedy decoding). Not exact: its outputs change by about 1 %,
            and a token now and then with them. The model's own weights stay as they are. On the CPU; needs a C compiler.

    Returns:
        `nn.Module`: The same model.

    Raises:
        ValueError: For a model that is on another device, on several or quantized, one on a GPU without a layer of 2:4, or
            `int8_head` without a head. It is unchanged then.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"speed_up needs a model, got {type(model).__name__}. Pass what from_pretrained gives.")
    if getattr(model, "is_quantized", False):
        raise ValueError("speed_up needs a model that is not quantized: quantized layers have kernels of their own.")
    devices = sorted({p.device.type for p in model.parameters()})
    if len(devices) > 1 or not set(devices) <= set(PATHS):
        raise ValueError(
            f"speed_up is for a CPU or a GPU, got a model on {', '.join(devices)}. Call model.cpu() first."
        )
    on_gpu = devices == ["cuda"]
    if on_gpu and int8_head:
        raise ValueError("int8_head is for the CPU, got a model on a GPU. Leave it out, or call model.cpu() first.")
    head = _head(model) if int8_head else None
    layers = [module for module in model.modules() if type(module) in FAST and _is_worth_it(module)]
    again = [module for module in model.modules() if type(module) in FAST.values()]
    if on_gpu and not layers + again:
        raise ValueError(
            'On a GPU speed_up is for layers that keep two of every four weights (pruning_pattern="2:4"), in float16 or '
            "bfloat16; this model has none. What is faster there: fewer layers or neurons (drop_layers, shrink)."
        )
    for module in layers + again:
        setattr(module, "fast", Fast(inexact=module is head))  # noqa: B010
        module.__class__ = FAST.get(type(module), type(module))
    return model


def slow_down(model: M) -> M:
    """Undo [`speed_up`], in place: ordinary layers, which can be trained and pickled; their weights are where they were."""
    slow = {fast: layer for layer, fast in FAST.items()}
    for module in model.modules():
        if type(module) in slow:
            del module.fast
            module.__class__ = slow[type(module)]
    return model


def speed_table(model: nn.Module) -> str:
    """What the layers of a model that was sped up do, of what was seen so far: rows of equal shape and choice together."""
    rows: dict[tuple, list[float]] = {}
    for module in model.modules():
        if isinstance(module, (FastLinear, FastConv1D)):
            shape = tuple(module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1])
            for size, way in sorted(module.fast.choices.items()):
                rows.setdefault((shape, f"{module.fast.sparsity:.0%}", size, way), []).append(module.fast.ratios[size])
    lines = [
        ["x".join(map(str, shape)), zeros, f"up to {size}", way, len(ratios), f"{sum(ratios) / len(ratios):.1f}x"]
        for (shape, zeros, size, way), ratios in sorted(rows.items())
    ]
    table = tabulate(lines, ["weight", "zeros", "rows", "way", "layers", "over dense"], disable_numparse=True)
    return table if load_kernel() is not None else f"{table}\nNo C compiler (cc, gcc, clang): no kernel for zeros."


def _head(model: nn.Module) -> nn.Module:
    """The map to the vocabulary."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is None:
        raise ValueError(
            f"int8_head is for models that map to a vocabulary, got {type(model).__name__}, which has no such head. Leave it out."
        )
    return head


def _is_worth_it(module: nn.Module) -> bool:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.numel() < SMALLEST or weight.dtype not in DTYPES[weight.device.type]:
        return False
    return weight.device.type == "cpu" or is_two_of_four(weight.t() if isinstance(module, Conv1D) else weight)
