"""In which forms the weights of a model lie in a folder, dense or compact, and how large they are; without reading them."""

from pathlib import Path

from .folder import CONFIG, INDEX, MASKS, WEIGHTS, find_file, read_index, weight_files

VARIANT = "sparse"
COMPACT = f"model.{VARIANT}.safetensors"
COMPACT_INDEX = f"{INDEX.removesuffix('.json')}.{VARIANT}.json"
"""The names that `from_pretrained(..., variant="sparse")` looks for."""


class CompactError(ValueError):
    """A compact file that is damaged, hostile, of a later version, or not for this model."""


def tells_form(name: str) -> bool:
    """Whether a file of a model folder is another one where the model is stored in another form; the configuration names it."""
    return name in (CONFIG, INDEX, COMPACT_INDEX) or (name.endswith(".safetensors") and name != MASKS)


def has_dense(folder: Path) -> bool:
    return any(find_file(folder, name) for name in (WEIGHTS, INDEX))


def has_compact(folder: Path) -> bool:
    return any(find_file(folder, name) for name in (COMPACT, COMPACT_INDEX))


def compact_files(folder: Path) -> list[Path]:
    """
    The compact files of a folder, in order.

    Raises:
        CompactError: If there is none, or the index names what is not there or lies elsewhere.
    """
    whole = find_file(folder, COMPACT, CompactError)
    if whole is not None:
        return [whole]
    if find_file(folder, COMPACT_INDEX, CompactError) is None:
        found = sorted(path.name for path in folder.glob("*"))[:8]
        raise CompactError(f"Expected {COMPACT} or {COMPACT_INDEX} in {folder}, found {found}. sms_hf.pack writes it.")
    return [folder / name for name in dict.fromkeys(read_index(folder / COMPACT_INDEX, CompactError).values())]


def compact_paths(folder: Path) -> list[Path]:
    """All files of the compact form."""
    return [*compact_files(folder), *_there(folder, COMPACT_INDEX)] if has_compact(folder) else []


def weight_paths(folder: Path) -> list[Path]:
    """All files of the dense form."""
    return [*weight_files(folder), *_there(folder, INDEX)] if has_dense(folder) else []


def _there(folder: Path, name: str) -> list[Path]:
    path = find_file(folder, name)
    return [] if path is None else [path]


def weight_sizes(folder: Path) -> dict[str, int]:
    """Weight file -> bytes."""
    files = [*weight_paths(folder), *compact_paths(folder)]
    return {path.name: path.stat().st_size for path in files if path.suffix == ".safetensors"}


def run_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the weights and masks of a run, and of the folders in which it works."""
    files = [path for path in [find_file(folder, MASKS)] if path is not None]
    working = {
        f"{path.name}/": sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        for path in sorted(folder.glob("_*"))
        if path.is_dir()
    }
    return weight_sizes(folder) | {path.name: path.stat().st_size for path in files} | working
