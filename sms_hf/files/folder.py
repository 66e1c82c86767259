"""
Which files of a folder are the model's: decided here, for every reader and writer, before anything is opened or changed.

Model folders come from strangers. An index that names `../.ssh/config`, a `vocab.txt` that is a link to a secret, a
`model.safetensors` that is a device: without this, packing would rewrite or delete files elsewhere, and pushing publish them.
"""

import json
import stat
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MASKS = "masks.safetensors"
CONFIG = "config.json"
CARD = "README.md"
LINEAGE = "sparse_soup.json"
REPORT = "report.json"
FIGURE = "phases.png"

MAX_JSON_BYTES = 100_000_000
"""Of an index or a configuration: as many as safetensors allows for a header, some million tensors."""

OTHER_FILES = frozenset(
    {
        *(CONFIG, CARD, LINEAGE, FIGURE, MASKS),
        *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "generation_config.json"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "chat_template.json", "audio_tokenizer_config.json"),
        # Vocabularies, as the tokenizers of transformers call them.
        *("vocab.json", "vocab.txt", "merges.txt", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
        *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model"),
        *("source.spm", "target.spm", "bpe.codes", "dict.txt", "entity_vocab.json", "emoji.json", "byte_maps.json"),
        *("prophetnet.tokenizer", "spm_char.model", "normalizer.json", "word_shape.json", "word_pronunciation.json"),
    }
)
"""All that belongs to a model besides its weights. What is not listed (notes, logs, pickles) goes nowhere."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, hostile, or does not fit the others."""


def find_file(folder: Path, name: str, error: type[ValueError] = CheckpointError) -> Path | None:
    """
    A file of a model folder, or None where there is none.

    Args:
        folder (`Path`): The folder. It may itself be a link; it is the user's to name.
        name (`str`): A plain file name.
        error (`type`, *optional*): What to raise.

    Raises:
        ValueError: For a name that is a path or no printable text, a link that leaves the folder, and what is no file. The
            blobs to which a snapshot in the Hub's cache links belong to that snapshot.
    """
    if not _is_plain(name):
        raise error(f"Expected plain names of files in {folder}, got {str(name)[:80]!r}. Fetch the folder anew.")
    path = folder / name
    try:
        target, root = path.resolve(), folder.resolve()
        if path.is_symlink() and not any(target.is_relative_to(home) for home in _homes(root)):
            raise error(
                f"{name} in {folder} must be a file of this folder, but it is a link that leaves it, to {target}. Put the file "
                "itself in its place."
            )
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as broken:  # Links in a circle, a folder that is none, no permission.
        raise error(f"{name} in {folder} cannot be read: {broken}.") from broken
    if not stat.S_ISREG(mode):
        raise error(f"{name} in {folder} must be a file, but it is {_kind(mode)}. Fetch the folder anew.")
    return path


def _is_plain(name: str) -> bool:
    """Whether this names a file where it is looked for, on every system, and can be shown to people."""
    return name.isprintable() and Path(name).name == name != ".." and "\\" not in name and len(name.encode()) <= 255


def _homes(root: Path) -> list[Path]:
    """Where files of a folder may lie: in it, and for a snapshot of the Hub's cache among the repository's blobs."""
    return [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, holds in kinds.items() if holds(mode)), "a device")


def read_json(path: Path, error: type[ValueError] = CheckpointError) -> dict[str, Any]:
    """
    The object in a JSON file of a model folder.

    Raises:
        ValueError: Where it is missing, no file of the folder, too large, or holds something else.
    """
    found = find_file(path.parent, path.name, error)
    if found is None:
        raise error(f"Expected a model folder with {path.name}, found none in {path.parent}.")
    if found.stat().st_size > MAX_JSON_BYTES:
        raise error(f"{path} must be of at most {MAX_JSON_BYTES:,} bytes, got {found.stat().st_size:,}.")
    try:
        value = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as broken:
        raise error(f"{path} is damaged: {broken}. Fetch or write it anew.") from broken
    if not isinstance(value, dict):
        raise error(f"{path} must hold an object, got {type(value).__name__}. Fetch or write it anew.")
    return value


def read_index(path: Path, error: type[ValueError] = CheckpointError) -> dict[str, str]:
    """
    Tensor -> file of a weights index; all files are safetensors that lie beside it.

    Raises:
        ValueError: For anything else, as [`read_json`] and [`find_file`], and for files that are not there.
    """
    weight_map = read_json(path, error).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise error(f"{path} must hold a weight_map from tensors to files. Fetch or write it anew.")
    absent = []
    for name in dict.fromkeys(weight_map.values()):
        # No other index, nor the masks: what an index names may be rewritten and removed as weights.
        if not _is_plain(name) or not name.endswith(".safetensors") or name == MASKS:
            raise error(f"{path} must name safetensors files beside it, got {name[:80]!r}. Fetch or write it anew.")
        if find_file(path.parent, name, error) is None:
            absent.append(name)
    if absent:
        raise error(f"{path} names files that are not there: {absent[:3]}. Fetch them.")
    return weight_map


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a model folder, in order."""
    whole = find_file(folder, WEIGHTS)
    if whole is not None:
        return [whole]
    if find_file(folder, INDEX) is not None:
        return [folder / name for name in dict.fromkeys(read_index(folder / INDEX).values())]
    raise CheckpointError(
        f"Expected {WEIGHTS} or {INDEX} in {folder}, found {sorted(p.name for p in folder.glob('*'))[:8]}. "
        "Pass folders that save_pretrained or Trainer.save_model wrote."
    )


def other_files(folder: Path, error: type[ValueError] = CheckpointError) -> list[Path]:
    """The files of a model folder that hold no weights: configuration, tokenizer, masks, lineage, card (`OTHER_FILES`)."""
    return sorted(path for name in OTHER_FILES if (path := find_file(folder, name, error)) is not None)
