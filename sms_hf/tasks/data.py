"""Data of a recipe: from files or the Hub, with the columns and as many rows as are asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import datasets

from ..choices import nearest
from .settings import CommonArguments, RecipeError

T = TypeVar("T")


# ---- Data and models ---------------------------------------------------------------------------------------------------


def limit(data: datasets.DatasetDict, recipe: CommonArguments) -> datasets.DatasetDict:
    """The splits train, validation and (if there is one) test, cut to the sizes asked for."""
    limits = {
        "train": recipe.max_train_samples,
        "validation": recipe.max_eval_samples,
        "test": recipe.max_test_samples,
    }
    missing = [split for split in ("train", "validation") if split not in data]
    if missing:
        raise RecipeError(
            f"Expected splits train and validation (and test, scored once at the end), missing: {missing}. Selection needs "
            "a validation set of its own."
        )
    splits = {name: data[name] for name in limits if name in data}
    return datasets.DatasetDict(
        {name: split.select(range(min(limits[name] or len(split), len(split)))) for name, split in splits.items()}
    )


def read_files(files: Mapping[str, str], with_text: bool = False) -> datasets.DatasetDict:
    """
    Splits from local files, each read by its suffix: JSON Lines or CSV, compressed or not (`.csv.gz`), or Parquet.

    Args:
        files (`Mapping[str, str]`): Split -> file.
        with_text (`bool`, *optional*, defaults to `False`): Also read .txt, a row for each line, newline included.
    """
    absent = [name for name in files.values() if not Path(name).is_file()]
    if absent:
        raise RecipeError(f"Expected a local file for every split, not found: {', '.join(absent)}.")
    kinds = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"} | (
        {".txt": "text"} if with_text else {}
    )
    splits = {}
    for split, name in files.items():
        plain = name.removesuffix(".gz")
        kind = kinds.get(Path(plain).suffix)
        if kind is None or (kind == "parquet" and plain != name):  # Parquet compresses itself.
            raise RecipeError(
                f"Expected a file that ends with one of {', '.join(kinds)}, got {name}. It may be compressed: .csv.gz, but not "
                ".parquet."
            )
        options: dict[str, Any] = {"keep_linebreaks": True} if kind == "text" else {}
        splits[split] = datasets.load_dataset(kind, data_files=name, split="train", **options)
    return datasets.DatasetDict(splits)


def from_hub(what: str, load: Callable[[], T], instead: str) -> T:
    """Call `load`; where the Hub cannot be reached, say so in one sentence that ends with what to pass instead."""
    try:
        return load()
    except (OSError, ConnectionError) as error:
        raise RecipeError(
            f"Cannot get {what!r} from the Hugging Face Hub ({type(error).__name__}). Without the Hub, run with --demo, or "
            f"pass {instead}."
        ) from error


def read_hub(recipe: Any, instead: str) -> datasets.DatasetDict:
    """The data set that `dataset_name` and `dataset_config_name` name."""
    name, config = recipe.dataset_name, recipe.dataset_config_name
    return from_hub(name, lambda: datasets.load_dataset(name, config), instead)


def select_columns(data: datasets.Dataset, split: str, wanted: Mapping[str, str], options: str) -> datasets.Dataset:
    """
    The columns asked for, renamed, and no others.

    Args:
        wanted (`Mapping[str, str]`): Column of the data -> its new name.
        options (`str`): The options that say which columns, for the error.
    """
    missing = [column for column in wanted if column not in data.column_names]
    if missing:
        raise RecipeError(
            f"Expected columns {list(wanted)} in the {split} data, missing: {missing}; it has {data.column_names}. Set "
            f"{options}.{nearest(missing[0], data.column_names)}"
        )
    return data.select_columns(list(wanted)).rename_columns({old: new for old, new in wanted.items() if old != new})
