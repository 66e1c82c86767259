"""Model folders between the ordinary form, the compact form and both side by side."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..choices import check_choice
from ..files.checkpoint import Checkpoint
from ..files.folder import (
    CONFIG,
    INDEX,
    MASKS,
    WEIGHTS,
    CheckpointError,
    find_file,
    other_files,
    read_json,
    weight_files,
)
from ..files.forms import (
    COMPACT,
    COMPACT_INDEX,
    VARIANT,
    compact_files,
    compact_paths,
    has_compact,
    has_dense,
    weight_paths,
)
from ..files.writing import aside, new_folder, write_json
from ..sparsity.masks import Masks
from .compact_file import CompactFile, write_compact, write_dense

QUANT_METHOD = "sms_hf"
FORMATS = ("dense", "compact", "both")


def pack(
    folder: str | Path, output: str | Path | None = None, *, keep_dense: bool = True, entropy_coded: bool = False
) -> Path:
    """
    Give a model folder the compact form of its weights.

    Masks are those of `masks.safetensors` where it lies in the folder, else the zeros of the weights.

    Args:
        folder (`str` or `Path`): What `save_pretrained` or `Trainer.save_model` wrote.
        output (`str` or `Path`, *optional*): A new folder for the result, with the model's other files (configuration,
            tokenizer, masks, lineage, card). Default: in place.
        keep_dense (`bool`, *optional*, defaults to `True`): Both forms side by side, so that every tool can load the
            folder. `False`: the compact form alone, for which sms_hf is needed.
        entropy_coded (`bool`, *optional*, defaults to `False`): Code masks and exponents near their entropy, those of dense
            tensors, too: the smallest form, and slower to read.

    Returns:
        `Path`: The folder with the result.

    Raises:
        CheckpointError: If the folder holds no dense weights, or names or links that leave it; if `output` is in use. Nothing
            is changed then.
        MaskError: If a weight that its mask removes is not zero.
    """
    return convert(folder, "both" if keep_dense else "compact", output, entropy_coded)


def unpack(folder: str | Path, output: str | Path | None = None) -> Path:
    """
    Turn a folder with a compact form into an ordinary one. Inverse of [`pack`], with its arguments and errors.

    Raises:
        CompactError: If the compact form is damaged.
    """
    return convert(folder, "dense", output)


def convert(folder: str | Path, form: str, output: str | Path | None = None, entropy_coded: bool = False) -> Path:
    """
    Give a folder one of the `FORMATS`, in place or as a new folder.

    Whenever this is interrupted, the folder holds a whole model: the dense form is there before a compact one goes, and the
    compact one before a dense one goes.
    """
    check_choice("sparse_format", form, FORMATS)
    folder = Path(folder)
    config = read_config(folder)
    _check_names(folder)
    if output is None:
        _convert(folder, folder, form, config, entropy_coded)
        return folder
    output = Path(output)
    if folder.resolve() in (output.resolve(), aside(output).resolve()):
        raise CheckpointError(
            f"output must be another folder than the source, got {output}. Leave it out to work in place."
        )
    with new_folder(output, CheckpointError) as partial:
        _copy(other_files(folder), partial)
        _convert(folder, partial, form, config, entropy_coded)
    return output


def _check_names(folder: Path) -> None:
    """Raise for a name or a link that leaves the folder, before anything is written or removed."""
    # Where both forms are there, nothing of the compact one is read, and an old one may lack shards.
    dense, compact = (weight_paths(folder), []) if has_dense(folder) else ([], compact_paths(folder))
    other_files(folder)
    alike = [path.name for path in dense if _compact_name(path.name) == path.name]
    alike += [path.name for path in compact if path.name != COMPACT_INDEX and _dense_name(path.name) == path.name]
    if alike:
        # Its other form would have the same name, and be written over it.
        raise CheckpointError(
            f"Expected weights in {folder} named model*.safetensors (compact ones model.{VARIANT}*), got {alike[:3]}. Save the "
            "model anew."
        )


def _convert(source: Path, target: Path, form: str, config: dict[str, Any], entropy_coded: bool) -> None:
    # Where both forms are there, the dense one counts: what trains the model writes that one.
    if not has_dense(source):
        _unpack_weights(source, target)
    elif source != target:
        _copy(weight_paths(source), target)
    # The dense form is whole now. An older compact one could have other shards, which would stay behind.
    _remove([*target.glob(f"model.{VARIANT}*.safetensors"), target / COMPACT_INDEX])
    if form == "dense":
        _write_config(target, config, None)
        return
    _pack_weights(target, str(config.get("model_type", "")), entropy_coded)
    _write_config(target, config, {"quant_method": QUANT_METHOD, "dequantize": True})
    if form == "compact":
        _remove(weight_paths(target))


def _pack_weights(folder: Path, model_type: str, entropy_coded: bool) -> None:
    masks: Mapping = Masks.of(folder) if find_file(folder, MASKS) else {}
    parts = [path.with_name(_compact_name(path.name)) for path in weight_files(folder)]
    for path, part in zip(weight_files(folder), parts, strict=True):
        write_compact(path, part, model_type, masks, entropy_coded)
    if find_file(folder, WEIGHTS) is None:  # An index beside a whole file is left from shards that were there before.
        index = read_json(folder / INDEX)
        weight_map = {name: _compact_name(file) for name, file in index["weight_map"].items()}
        for part in parts:
            with CompactFile(part) as file:
                weight_map |= {n + p: part.name for n, stored in file.tensors.items() for p in stored.parts}
        write_json(folder / COMPACT_INDEX, {**index, "weight_map": dict(sorted(weight_map.items()))}, sort_keys=True)


def _unpack_weights(source: Path, target: Path) -> None:
    weight_map = {}
    for path in compact_files(source):
        name = _dense_name(path.name)
        weight_map |= dict.fromkeys(write_dense(path, target / name), name)
    if find_file(source, COMPACT) is None:
        index = read_json(source / COMPACT_INDEX)
        write_json(target / INDEX, {**index, "weight_map": dict(sorted(weight_map.items()))}, sort_keys=True)


def _compact_name(name: str) -> str:
    """`model.safetensors` -> `model.sparse.safetensors`, `model-1-of-2.safetensors` -> `model.sparse-1-of-2.safetensors`."""
    return name.replace("model", f"model.{VARIANT}", 1)


def _dense_name(name: str) -> str:
    return name.replace(f"model.{VARIANT}", "model", 1)


def model_digest(folder: Path) -> str | None:
    """
    SHA-256 of the model in a folder, the same for every form: of its configuration and all names, types, shapes and values.

    Returns:
        `str`, *optional*: None where there are no weights, or two forms that differ.

    Raises:
        CheckpointError, CompactError: If a form is damaged.
    """
    config = read_config(folder) if find_file(folder, CONFIG) else {}
    if (config.get("quantization_config") or {}).get("quant_method") == QUANT_METHOD:
        del config["quantization_config"]
    digests = set()
    with ExitStack() as stack:
        if has_dense(folder):
            checkpoint = stack.enter_context(Checkpoint(folder))
            digests.add(_digest(config, dict.fromkeys(checkpoint.shapes, checkpoint.tensor)))
        if has_compact(folder):
            files = [stack.enter_context(CompactFile(path)) for path in compact_files(folder)]
            digests.add(_digest(config, {name: file.read for file in files for name in file.tensors}))
    return digests.pop() if len(digests) == 1 else None


def _digest(config: Mapping[str, Any], readers: Mapping[str, Callable[[str], Tensor]]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, read in sorted(readers.items()):
        tensor = read(name)
        if tensor.is_floating_point():
            tensor = tensor + 0.0  # The compact form has no negative zeros.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """
    `config.json` of a model folder.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    return read_json(folder / CONFIG)


def _write_config(folder: Path, config: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    others = config.get("quantization_config")
    if others is not None and others.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"Expected a model without quantization, {folder / CONFIG} says {others.get('quant_method')!r}. Pack first the "
            "weights that were not quantized."
        )
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    write_json(
        folder / CONFIG,
        config if quantization is None else {**config, "quantization_config": quantization},
        sort_keys=True,
    )


def _copy(paths: list[Path], target: Path) -> None:
    for path in paths:
        shutil.copyfile(path, target / path.name)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
