"""Masks: which weights are kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..files.folder import MASKS, find_file
from ..files.writing import whole_file

FORMAT = "sms_hf.masks.v1"
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "base_model.model.", ".base_layer")
"""Of `torch.compile`, activation checkpoints and PEFT."""


class MaskError(ValueError):
    """Masks that do not fit a model, each other, or weights that should be zero."""


class Masks(Mapping[str, Tensor]):
    """
    Parameter name -> `bool` tensor of the parameter's shape on the CPU, `True` = kept.

    Masks are values: nothing here changes them after construction. Methods that change a model end in `_`.

    Args:
        masks (`Mapping[str, Tensor]`): The tensors, in the order of the model's parameters.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise MaskError(f"Mask of {name!r} must be a bool tensor, got {mask.dtype}. True means kept.")
        self._masks = {name: mask.detach().cpu() for name, mask in masks.items()}
        self._fingerprint: str | None = None

    @classmethod
    def all_kept(cls, weights: Mapping[str, Tensor]) -> "Masks":
        """Masks of these weights before anything is removed."""
        return cls({name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.num_kept:,} of {self.num_weights:,} weights kept)"

    @property
    def num_weights(self) -> int:
        """Number of weights that the masks cover."""
        return sum(mask.numel() for mask in self.values())

    @property
    def num_kept(self) -> int:
        """Number of weights that are kept."""
        return sum(int(mask.sum()) for mask in self.values())

    def sparsity(self) -> float:
        """Fraction removed of the covered weights, in `[0, 1]`."""
        return 1.0 - self.num_kept / self.num_weights if self.num_weights else 0.0

    def sparsity_per_tensor(self) -> dict[str, float]:
        """Parameter name -> fraction removed, in `[0, 1]`."""
        return {n: 1.0 - int(mask.sum()) / mask.numel() if mask.numel() else 0.0 for n, mask in self.items()}

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and bits: equal exactly where the masks are equal."""
        if self._fingerprint is None:
            self._fingerprint = _digest({name: (_pack(mask), list(mask.shape)) for name, mask in self.items()})
        return self._fingerprint

    def is_within(self, other: "Masks") -> bool:
        """Whether every weight kept here is kept by `other`, too: a later phase only ever shrinks the mask."""
        return set(self) == set(other) and all(bool((other[n] | ~mask).all()) for n, mask in self.items())

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """
        Set the pruned weights of `model` to exactly `0.0`, in place, whatever they hold (NaN and infinities included).

        Raises:
            MaskError: If a parameter is missing or has another shape. The model is unchanged then.
        """
        for name, parameter in self.parameters_of(model).items():
            set_zeros_(parameter, self[name])

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """
        Raise [`MaskError`] with tensor, count and first indices if a pruned weight is not exactly zero.

        Of sharded parameters (FSDP2) a process checks its own share.
        """
        for name, parameter in self.parameters_of(model).items():
            of = "" if not is_sharded(parameter) else " (the share of this process)"
            check_zeros(f"{name}{of}", local(parameter), share(self[name], parameter))

    @torch.no_grad()
    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """As [`Masks.check`], for a state dict: what a file will hold."""
        missing = [name for name in self if name not in state]
        if missing:
            raise MaskError(f"Expected a weight for every mask, found none for {missing[:3]}.")
        for name, mask in self.items():
            check_zeros(name, state[name], mask)

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """
        The parameters that the masks are for, by name.

        Raises:
            MaskError: If a parameter is missing or has another shape.
        """
        parameters = named_weights(model)
        missing = [name for name in self if name not in parameters]
        if missing:
            raise MaskError(
                f"Masks for {missing[:3]} have no parameter in {type(model).__name__}. Masks belong to the model they "
                "were made for: prune this one, or load the model that the masks lie beside."
            )
        for name, mask in self.items():
            if mask.shape != parameters[name].shape:
                raise MaskError(
                    f"Mask of {name!r} must have the parameter's shape {tuple(parameters[name].shape)}, "
                    f"got {tuple(mask.shape)}."
                )
        return {name: parameters[name] for name in self}

    def save(self, path: str | Path) -> None:
        """Write the masks as safetensors, one bit a weight (little-endian bit order, rows flattened)."""
        shapes = {name: list(mask.shape) for name, mask in self.items()}
        # One entry: safetensors writes several in random order, and equal masks should be equal files.
        header = json.dumps({"shapes": shapes, "fingerprint": self.fingerprint()})
        packed = {name: _pack(mask) for name, mask in self.items()}
        with whole_file(Path(path)) as file:
            file.write(save(packed, metadata={FORMAT: header}))

    @classmethod
    def of(cls, folder: str | Path) -> "Masks":
        """The masks that lie in a model folder; errors as in [`Masks.load`]."""
        return cls.load(Path(folder) / MASKS)

    @classmethod
    def load(cls, path: str | Path) -> "Masks":
        """
        Read masks that [`Masks.save`] wrote.

        Raises:
            MaskError: If the file is damaged, no file of masks, or a link that leaves its folder.
            FileNotFoundError: If it is missing.
        """
        packed, fingerprint = _read(Path(path))
        masks = cls({name: _unpack(bits, shape) for name, (bits, shape) in packed.items()})
        masks._fingerprint = fingerprint
        return masks


def stored_fingerprint(path: Path) -> str:
    """The fingerprint of a file of masks, whose bits were compared with it; errors as in [`Masks.load`]."""
    return _read(path)[1]


def check_fingerprint(masks: Masks, expected: str, whose: str) -> None:
    """Raise [`MaskError`] unless these are the masks with that fingerprint."""
    if masks.fingerprint() != expected:
        raise MaskError(
            f"The masks of {whose} must be those with fingerprint {expected[:12]}, got {masks.fingerprint()[:12]}. Something "
            "changed them after pruning: start again in another output_dir."
        )


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by the names of the plain model: wrappers for compilation and activation checkpoints leave no trace."""
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(name): parameter for name, parameter in named}


def plain_name(name: str) -> str:
    """The name of a parameter without what wrappers put between."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (FSDP2) that this process holds, as a view; any other tensor as it is."""
    return cast("Any", tensor).to_local() if is_sharded(tensor) else tensor


def share(mask: Tensor, parameter: Tensor) -> Tensor:
    """The part of a mask that belongs to [`local`] of a parameter, on its device."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        # All processes hold the whole mask: nothing has to be sent.
        mesh, placements = cast("Any", parameter).device_mesh, cast("Any", parameter).placements
        mask = distribute_tensor(mask, mesh, placements, src_data_rank=None).to_local()
    return mask.to(local(parameter).device)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`, whose class takes most of a second to import."""
    return hasattr(tensor, "placements")


def set_zeros_(parameter: Tensor, mask: Tensor) -> None:
    """Set what a mask removes to exactly zero, of a sharded parameter in the part that this process holds."""
    local(parameter).masked_fill_(~share(mask, parameter), 0.0)


def check_zeros(name: str, weight: Tensor, mask: Tensor, first_row: int = 0) -> None:
    """
    Raise [`MaskError`] unless `weight` is exactly zero wherever `mask` is `False`.

    Both of one shape: the whole tensor, or its rows from `first_row` on.
    """
    revived = nonzero(weight) > mask.to(weight.device)
    # Of bools on the CPU, numpy's any takes a twentieth of the time of torch's.
    if revived.numpy().any() if revived.device.type == "cpu" else revived.any():
        revived = revived.nonzero()
        first = [(row + first_row, *rest) for row, *rest in revived[:3].tolist()]
        raise MaskError(
            f"Pruned weights of {name!r} must be exactly 0.0, but {len(revived)} are not, first at {first}. "
            "Something changed the weights after the mask was applied: call Masks.apply_(model)."
        )


def nonzero(weight: Tensor) -> Tensor:
    """Where a tensor is not zero: `weight != 0`, of floats on the CPU by their bits, in a third to a ninth of the time."""
    kinds = {torch.float32: (torch.int32, np.uint32), torch.float16: (torch.int16, np.uint16)}
    kinds[torch.bfloat16] = kinds[torch.float16]
    if weight.device.type != "cpu" or weight.dtype not in kinds:
        return weight != 0
    whole, unsigned = kinds[weight.dtype]
    bits = weight.detach().contiguous().view(-1).view(whole).numpy().view(unsigned)
    return torch.from_numpy(bits << unsigned(1) != 0).view(weight.shape)  # Without its sign a zero is all zeros.


def _read(path: Path) -> tuple[dict[str, tuple[Tensor, list[int]]], str]:
    """Bits and shapes by name, and their fingerprint."""
    if path.is_dir():
        there = f" There is one: {path / MASKS}." if find_file(path, MASKS, MaskError) else ""
        raise MaskError(f"Expected a file of masks, got the folder {path}.{there}")
    find_file(path.parent, path.name, MaskError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise MaskError(f"{path} must be a file of masks ({FORMAT}), got metadata {sorted(metadata)}.")
            header = json.loads(metadata[FORMAT])
            packed = {name: (_checked(file.get_tensor(name), shape), shape) for name, shape in header["shapes"].items()}
            fingerprint, found = header["fingerprint"], _digest(packed)
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise MaskError(f"{path} is damaged: {error}. Write the masks again, or fetch the file anew.") from error
    if found != fingerprint:
        raise MaskError(f"{path} is damaged: its masks do not match their checksum. Fetch the file anew.")
    return packed, fingerprint


def _digest(packed: Mapping[str, tuple[Tensor, list[int]]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(packed):
        bits, shape = packed[name]
        digest.update(json.dumps([name, shape]).encode())
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.reshape(-1).numpy(), bitorder="little"))


def _checked(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    if bits.numel() != -(-count // 8):
        raise MaskError(
            f"A mask of shape {shape} needs {-(-count // 8)} bytes, got {bits.numel()}: the file is damaged."
        )
    return bits


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little").view(bool)).reshape(shape)
