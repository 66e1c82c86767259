"""Model folders between the ordinary form, the compact form and both side by side."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..soup.checkpoint import INDEX, MASKS, WEIGHTS, CheckpointError, weight_files
from ..sparsity.masks import Masks
from .compact_file import MASK, CompactFile, write_compact, write_dense
from .mask_codings import CompactError

CONFIG = "config.json"
VARIANT = "sparse"
COMPACT = f"model.{VARIANT}.safetensors"
COMPACT_INDEX = f"{INDEX.removesuffix('.json')}.{VARIANT}.json"
"""The names that `from_pretrained(..., variant="sparse")` looks for."""

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
        output (`str` or `Path`, *optional*): A new folder for the result, with all other files. Default: in place.
        keep_dense (`bool`, *optional*, defaults to `True`): Both forms side by side, so that every tool can load the
            folder. `False`: the compact form alone, for which sms_hf is needed.
        entropy_coded (`bool`, *optional*, defaults to `False`): Code the masks near their entropy.

    Returns:
        `Path`: The folder with the result.

    Raises:
        CheckpointError: If the folder holds no dense weights, or `output` is in use.
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
    if form not in FORMATS:
        raise ValueError(f"sparse_format must be one of {list(FORMATS)}, got {form!r}.")
    folder = Path(folder)
    config = read_config(folder)
    if output is None:
        _convert(folder, folder, form, config, entropy_coded)
        return folder
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"output must be a new or empty folder, got {output}. Choose another one.")
    partial = output.with_name(output.name + ".partial")
    if folder.resolve() in (output.resolve(), partial.resolve()):
        raise CheckpointError(
            f"output must be another folder than the source, got {output}. Leave it out to work in place."
        )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _copy_others(folder, partial)
    _convert(folder, partial, form, config, entropy_coded)
    if output.exists():
        output.rmdir()
    partial.rename(output)
    return output


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
    masks: Mapping = Masks.load(folder / MASKS) if (folder / MASKS).is_file() else {}
    parts = [path.with_name(_compact_name(path.name)) for path in weight_files(folder)]
    for path, part in zip(weight_files(folder), parts, strict=True):
        write_compact(path, part, model_type, masks, entropy_coded)
    if not (folder / WEIGHTS).is_file():  # An index beside a whole file is left from shards that were there before.
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weight_map = {name: _compact_name(file) for name, file in index["weight_map"].items()}
        for part in parts:
            with CompactFile(part) as file:
                weight_map |= {n + MASK: part.name for n, stored in file.tensors.items() if stored.mask is not None}
        _write_json(folder / COMPACT_INDEX, {**index, "weight_map": dict(sorted(weight_map.items()))})


def _unpack_weights(source: Path, target: Path) -> None:
    for path in compact_files(source):
        write_dense(path, target / _dense_name(path.name))
    if (source / COMPACT_INDEX).is_file():
        index = json.loads((source / COMPACT_INDEX).read_text(encoding="utf-8"))
        names = {name: _dense_name(file) for name, file in index["weight_map"].items()}
        packed = {name for name in names if name.endswith(MASK) and name.removesuffix(MASK) in names}
        _write_json(target / INDEX, {**index, "weight_map": {n: f for n, f in names.items() if n not in packed}})


def _compact_name(name: str) -> str:
    """`model.safetensors` -> `model.sparse.safetensors`, `model-1-of-2.safetensors` -> `model.sparse-1-of-2.safetensors`."""
    return name.replace("model", f"model.{VARIANT}", 1)


def _dense_name(name: str) -> str:
    return name.replace(f"model.{VARIANT}", "model", 1)


# ---- What lies in a folder ---------------------------------------------------------------------------------------------


def has_dense(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def has_compact(folder: Path) -> bool:
    return (folder / COMPACT).is_file() or (folder / COMPACT_INDEX).is_file()


def compact_files(folder: Path) -> list[Path]:
    """
    The compact files of a folder, in order.

    Raises:
        CompactError: If there is none, or the index names a file that is not there.
    """
    if (folder / COMPACT).is_file():
        return [folder / COMPACT]
    if not (folder / COMPACT_INDEX).is_file():
        found = sorted(path.name for path in folder.glob("*"))[:8]
        raise CompactError(f"Expected {COMPACT} or {COMPACT_INDEX} in {folder}, found {found}. sms_hf.pack writes it.")
    files = [folder / name for name in dict.fromkeys(_weight_map(folder / COMPACT_INDEX).values())]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CompactError(f"{COMPACT_INDEX} in {folder} names files that are not there: {missing[:3]}. Fetch them.")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file of an index. Files lie beside it: a name that leads elsewhere is refused."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in names.values() if Path(name).name != name]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CompactError(f"{index} is damaged: {error}. Fetch or write it anew.") from error
    if outside:
        raise CompactError(f"{index} must name files beside it, got {outside[:3]}.")
    return names


def compact_paths(folder: Path) -> list[Path]:
    """All files of the compact form."""
    return [*compact_files(folder), folder / COMPACT_INDEX] if has_compact(folder) else []


def weight_paths(folder: Path) -> list[Path]:
    """All files of the dense form."""
    return [*weight_files(folder), folder / INDEX] if has_dense(folder) else []


def read_config(folder: Path) -> dict[str, Any]:
    """
    `config.json` of a model folder.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"Expected a model folder with {CONFIG}, got {folder}: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} must hold an object, got {type(config).__name__}.")
    return config


def _write_config(folder: Path, config: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    others = config.get("quantization_config")
    if others is not None and others.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(
            f"Expected a model without quantization, {folder / CONFIG} says {others.get('quant_method')!r}. Pack first the "
            "weights that were not quantized."
        )
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    _write_json(folder / CONFIG, config if quantization is None else {**config, "quantization_config": quantization})


def _write_json(path: Path, value: Any) -> None:
    """As transformers writes its configurations; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _copy_others(source: Path, target: Path) -> None:
    """All files that hold no weights. Folders (checkpoints, logs) stay behind."""
    weights = {path.name for path in (*weight_paths(source), *compact_paths(source))}
    _copy([path for path in source.iterdir() if path.is_file() and path.name not in weights], target)


def _copy(paths: list[Path], target: Path) -> None:
    for path in paths:
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
