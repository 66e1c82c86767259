"""
Rescue of orphaned sparse checkpoints: the bitmask formats of compressed-tensors 0.3 to 0.12, back to ordinary folders.

Later releases know the formats no longer, and transformers then loads such a folder with random weights. A packed tensor is
a group of tensors: `{prefix}.shape`, `{prefix}.compressed` (the kept values, row by row), `{prefix}.bitmask` (one bit a
weight, least significant bit first, every row padded to whole bytes) and, in `sparse-bitmask`, `{prefix}.row_offsets` (the
values before each row). Releases up to 0.8 pack every tensor, and the prefix is its name; later ones pack the weights of
some modules, and the prefix is the module's name.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files.checkpoint import DTYPES, Checkpoint, write_streamed
from ..files.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    CheckpointError,
    find_file,
    other_files,
    read_index,
    read_json,
)
from ..files.writing import aside, check_unused, new_folder, write_json

FORMATS = {
    "sparse-bitmask": ("shape", "compressed", "bitmask", "row_offsets"),
    "sparse-24-bitmask": ("shape", "compressed", "bitmask"),
}
"""Name in the configuration -> the tensors of a group."""

_ENTRIES = ("quantization_config", "compression_config", "sparseml_quantization_config")
_PLAIN = {
    "quant_method": (None, "compressed-tensors"),
    "format": (None, "dense", *FORMATS),
    "config_groups": (None, {}),
    "kv_cache_scheme": (None, {}),
    "transform_config": (None, {}, {"config_groups": {}}),
}
"""What an entry of the configuration says where the model is sparse and nothing else."""

_AGAIN = "The folder is damaged or incomplete: download it again."


class RescueError(ValueError):
    """A folder that is no orphaned sparse checkpoint, is damaged, or is quantized as well; or an output in use."""


@dataclass(frozen=True)
class Rescued:
    """
    What a rescue did; as a string, one line for people.

    Attributes:
        output (`Path`): The ordinary folder.
        format (`str`): A key of `FORMATS`.
        num_expanded, num_copied (`int`): Tensors that were packed, and tensors that were not.
        sparsity (`float`): Fraction removed of the weights of the expanded tensors.
    """

    output: Path
    format: str
    num_expanded: int
    num_copied: int
    sparsity: float

    def __str__(self) -> str:
        expanded = f"{self.num_expanded} {self.format} tensors expanded ({self.sparsity:.1%} removed)"
        return f"{expanded}, {self.num_copied} copied: {self.output} loads with from_pretrained."


def rescue(folder: str | Path, output: str | Path | None = None) -> Rescued:
    """
    Turn a folder that an old compressed-tensors wrote in a sparse format into one that every tool loads.

    Weights are the original ones bit for bit (but `sparse-bitmask` never kept the sign of a zero), in files named as before;
    the entry on compression leaves `config.json`; the model's other files (tokenizer, card, ...) are copied. In memory is one
    tensor at a time, and the output appears whole or not at all.

    Args:
        folder (`str` or `Path`): With `config.json` and safetensors, in a format of `FORMATS`.
        output (`str` or `Path`, *optional*): A new or empty folder. Default: `{folder}-dense`.

    Returns:
        `Rescued`: What was done.

    Raises:
        RescueError: If the folder is not in such a format, is damaged, or is quantized too; if the output is in use.
    """
    folder = Path(folder).resolve()
    config, form = _read_config(folder)
    parts = _read_index(folder)
    others = [path for path in other_files(folder, RescueError) if path.name != CONFIG]
    output = folder.with_name(folder.name + "-dense") if output is None else Path(output).resolve()
    check_unused(output, RescueError)
    if output.is_relative_to(folder) or folder.is_relative_to(aside(output).resolve()):
        raise RescueError(f"output must lie outside of {folder}, got {output}. Choose another one.")
    try:
        checkpoint = Checkpoint(folder)
    except CheckpointError as error:
        raise RescueError(f"{error} {_AGAIN}") from error
    with checkpoint:
        tensors = _plan(checkpoint, form, parts)
        with new_folder(output, RescueError) as unfinished:
            _write_weights(unfinished, tensors, sharded=parts is not None)
            write_json(unfinished / CONFIG, config)
            for path in others:
                shutil.copyfile(path, unfinished / path.name)
    packed = {name: tensor for name, tensor in tensors.items() if name not in checkpoint.shapes}
    kept = sum(math.prod(shape) for name, shape in checkpoint.shapes.items() if name.endswith(".compressed"))
    sparsity = 1 - kept / sum(math.prod(tensor.shape) for tensor in packed.values())
    return Rescued(output, form, len(packed), len(tensors) - len(packed), sparsity)


# ---- What the folder says about itself ---------------------------------------------------------------------------------


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The configuration without its entries on compression, and the format that they name."""
    config = read_json(folder / CONFIG, RescueError)
    entries = [config.pop(key, None) for key in _ENTRIES]
    entries += [{"sparsity_config": config.pop("sparsity_config", None)}]  # At first it stood alone.
    entries = [entry for entry in entries if isinstance(entry, dict)]
    found = [entry["sparsity_config"] for entry in entries if isinstance(entry.get("sparsity_config"), dict)]
    if not found:
        raise RescueError(
            f"Expected a quantization_config with a sparsity_config in {folder / CONFIG}, found none. Only folders in a sparse "
            "format of compressed-tensors need a rescue: load this one with from_pretrained."
        )
    form = str(found[0].get("format")).replace("_", "-")  # So it was spelled at first.
    if form not in FORMATS:
        raise RescueError(
            f"The sparse format must be one of {list(FORMATS)}, {folder / CONFIG} says {form!r}. A dense one needs no rescue; "
            "others need the release that wrote them."
        )
    nested = [entry.get("quantization_config") for entry in entries]  # As 0.3 wrote it.
    for entry in [*entries, *(entry for entry in nested if isinstance(entry, dict))]:
        more = {key: entry[key] for key, plain in _PLAIN.items() if entry.get(key) not in plain}
        if more:
            raise RescueError(
                f"Expected a checkpoint that is sparse and nothing else, {folder / CONFIG} also has {more}. Expanded, its "
                "weights would still be quantized or transformed: open it with the compressed-tensors that wrote it."
            )
    return config, form


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor -> file, or None where there is one file."""
    if find_file(folder, WEIGHTS, RescueError) or find_file(folder, INDEX, RescueError) is None:
        return None
    return read_index(folder / INDEX, RescueError)


# ---- Tensors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the new folder: its file, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    part: str
    read: Callable[[], Tensor]


def _plan(checkpoint: Checkpoint, form: str, parts: Mapping[str, str] | None) -> dict[str, _Tensor]:
    """Name -> tensor of the new folder. Sizes are checked here, contents when a tensor is read."""
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    unknown = {name: dtype for name, dtype in dtypes.items() if dtype not in DTYPES}
    if unknown:
        raise RescueError(f"Tensors must have a dtype of {list(DTYPES)}, got {unknown}: no sparse format has them.")
    parts = dict.fromkeys(shapes, WEIGHTS) if parts is None else parts
    if parts.keys() != shapes.keys():
        unlike = sorted(parts.keys() ^ shapes.keys())[:3]
        raise RescueError(f"{INDEX} must name the tensors that its files hold, but not so {unlike}. {_AGAIN}")
    groups: dict[str, set[str]] = defaultdict(set)
    tensors = {}
    for name in shapes:
        prefix, _, kind = name.rpartition(".")
        if kind in FORMATS["sparse-bitmask"]:
            groups[prefix].add(kind)
        else:
            read = partial(checkpoint.tensor, name)
            tensors[name] = _Tensor(shapes[name], dtypes[name], parts[name], read)
    if not groups:
        raise RescueError(
            f"Expected tensors named *.compressed in {checkpoint.folder}, found none: its weights are dense already. Remove "
            f"the quantization_config from {CONFIG} and load it with from_pretrained."
        )
    # Later releases cut ".weight" off the prefix; earlier ones had every weight of the model among the groups.
    suffix = "" if any(prefix.endswith(".weight") for prefix in groups) else ".weight"
    for prefix, kinds in groups.items():
        name, values = prefix + suffix, f"{prefix}.compressed"
        _check(prefix, f"the parts {sorted(FORMATS[form])} of {form}", kinds == set(FORMATS[form]), sorted(kinds))
        _check(prefix, f"no dense {name!r} beside it", name not in tensors, "one")
        shape = _dense_shape(checkpoint, prefix, form)
        read = partial(_expand, checkpoint, prefix, shape, form)
        tensors[name] = _Tensor(shape, dtypes[values], parts[values], read)
    return tensors


def _dense_shape(checkpoint: Checkpoint, prefix: str, form: str) -> tuple[int, ...]:
    """The shape that a group names, once sizes agree: then the file has a bit for every weight that will be allocated."""
    given = {
        part: (checkpoint.dtypes[f"{prefix}.{part}"], checkpoint.shapes[f"{prefix}.{part}"]) for part in FORMATS[form]
    }
    dtype, size = given["shape"]
    _check(prefix, "1 to 8 numbers in I64 as its shape", dtype == "I64" and 1 <= math.prod(size) <= 8, given["shape"])
    shape = tuple(checkpoint.tensor(f"{prefix}.shape").flatten().tolist())
    _check(prefix, "dimensions of at least 1", min(shape) >= 1, shape)
    expected = {"bitmask": ("U8", (*shape[:-1], -(-shape[-1] // 8))), "row_offsets": ("I64", shape[:-1])}
    for part in expected.keys() & given.keys():
        _check(
            prefix, f"a {part} of {expected[part]} for its shape {shape}", given[part] == expected[part], given[part]
        )
    if form == "sparse-24-bitmask":
        _check(prefix, "groups of four", math.prod(shape) % 4 == 0, shape)
    return shape


def _expand(checkpoint: Checkpoint, prefix: str, shape: tuple[int, ...], form: str) -> Tensor:
    """The dense tensor of a group, once its contents agree."""
    bits = checkpoint.tensor(f"{prefix}.bitmask").numpy()
    kept = np.unpackbits(bits, axis=-1, count=shape[-1], bitorder="little").view(np.bool_)
    values, count = checkpoint.tensor(f"{prefix}.compressed").flatten(), int(np.count_nonzero(kept))
    _check(prefix, "a value for every bit of its bitmask", values.numel() == count, f"{values.numel()} for {count}")
    beyond = int(np.bitwise_count(bits).sum(dtype=np.int64)) - count
    _check(prefix, f"no bits in its bitmask after column {shape[-1]}", beyond == 0, beyond)
    mask = torch.from_numpy(kept)
    if form == "sparse-bitmask":
        counts, offsets = mask.sum(-1), checkpoint.tensor(f"{prefix}.row_offsets")
        agree = torch.equal(offsets, counts.cumsum(0) - counts)
        _check(prefix, "row_offsets that count the bits of the rows before", agree, "others")
    else:  # A group may go on in the next row.
        groups = np.count_nonzero(kept.reshape(-1, 4), axis=1)
        _check(prefix, "two bits in every group of four", bool((groups == 2).all()), sorted(set(groups.tolist())))
    return torch.zeros(shape, dtype=values.dtype).masked_scatter_(mask, values)


def _check(prefix: str, expected: str, holds: bool, got: Any) -> None:
    if not holds:
        raise RescueError(f"The packed tensor {prefix!r} must have {expected}, got {got}. {_AGAIN}")


# ---- The new folder ----------------------------------------------------------------------------------------------------


def _write_weights(folder: Path, tensors: Mapping[str, _Tensor], sharded: bool) -> None:
    """Each tensor goes to a file of the name of the one with its values, wide numbers first: so all are aligned."""
    parts: dict[str, dict[str, _Tensor]] = defaultdict(dict)
    for name, tensor in sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize):
        parts[tensor.part][name] = tensor
    total = 0
    for part, members in parts.items():
        shapes = {name: tensor.shape for name, tensor in members.items()}
        dtypes = {name: tensor.dtype for name, tensor in members.items()}
        write_streamed(folder / part, shapes, dtypes, (tensor.read() for tensor in members.values()))
        total += sum(math.prod(shapes[name]) * DTYPES[dtypes[name]].itemsize for name in members)
    if sharded:
        weight_map = {name: tensors[name].part for name in sorted(tensors)}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
