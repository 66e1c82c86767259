"""What every recipe asks, from YAML and the command line."""

import sys
from argparse import ArgumentDefaultsHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from ..choices import nearest, nearest_option
from ..training.arguments import SparseSoupTrainingArguments

R = TypeVar("R", bound="CommonArguments")


class RecipeError(SystemExit):
    """A problem that the user can solve, in one sentence."""


@dataclass
class CommonArguments:
    """What every recipe asks besides model and data; everything else are `SparseSoupTrainingArguments`."""

    demo: bool = field(
        default=False, metadata={"help": "Train a small dense model on built-in data first: no download."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first so many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only the first so many validation rows."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Use only the first so many test rows."})
    smaller_first: list[str] | None = field(
        default=None,
        metadata={
            "help": "Make the model smaller first, as in 'layers:0.33 neurons:0.5': a soup of its own for each of these "
            "fractions of layers, neurons or heads. What is left is then pruned to target_sparsity."
        },
    )
    soup_of: list[str] | None = field(
        default=None,
        metadata={"help": "Train nothing: a greedy soup of these model folders, chosen on the validation data."},
    )
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})
    dense_epochs: float = field(default=3.0, metadata={"help": "With --demo: epochs of training for the dense model."})
    dense_dir: str | None = field(
        default=None, metadata={"help": "With --demo: folder of the dense model. Default: OUTPUT_DIR/_dense."}
    )

    @property
    def hub_dataset(self) -> str | None:
        """Name of the data set on the Hub, if that is where the data come from."""
        is_local = any(getattr(self, name, None) for name in ("demo", "parallel_dir", "train_file", "train_dir"))
        return None if is_local else getattr(self, "dataset_name", None)


@dataclass
class FileArguments(CommonArguments):
    """Data from the Hub or from files."""

    train_file: str | None = None  # Each recipe's help says what must be in it.
    validation_file: str | None = field(
        default=None, metadata={"help": "As train_file; every selection is made on it."}
    )
    test_file: str | None = field(default=None, metadata={"help": "As train_file; scored once, at the end."})

    @property
    def files(self) -> dict[str, str]:
        """Split -> file, of the splits that are given."""
        return _given(train=self.train_file, validation=self.validation_file, test=self.test_file)


@dataclass
class FolderArguments(CommonArguments):
    """Images from the Hub or from folders."""

    train_dir: str | None = None  # Each recipe's help says what must be in it.
    validation_dir: str | None = field(
        default=None, metadata={"help": "As train_dir; every selection is made on it. Default: see train_val_split."}
    )
    test_dir: str | None = field(default=None, metadata={"help": "As train_dir; scored once, at the end."})
    train_val_split: float = field(
        default=0.1, metadata={"help": "Without a validation split: fraction of the training images to make one of."}
    )

    def __post_init__(self):
        if not 0.0 < self.train_val_split < 1.0:
            raise RecipeError(f"train_val_split must lie in (0, 1), got {self.train_val_split}. Pass 0.1 for a tenth.")

    @property
    def folders(self) -> dict[str, str]:
        """Split -> folder, of the splits that are given."""
        return _given(train=self.train_dir, validation=self.validation_dir, test=self.test_dir)


def _given(**splits: str | None) -> dict[str, str]:
    return {split: name for split, name in splits.items() if name}


class _Help(ArgumentDefaultsHelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """The docstring of a recipe as it stands there: its examples have lines of their own."""
        return "".join(f"{indent}{line}\n" for line in text.strip().splitlines())


class _Parser(HfArgumentParser):
    """Says what is wrong in a sentence. argparse would list all options first, some 170 lines, transformers would trace."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message.rstrip('.')}. See --help.")

    def refuse(self, rest: list[str]) -> NoReturn:
        """Name what is no option, and the one that was probably meant."""
        meant = nearest_option(rest, self._option_string_actions)
        raise RecipeError(f"Expected options of {self.prog}, got {' '.join(rest)}.{meant} See --help.")


def parse(argv: list[str], script: str, recipe_class: type[R]) -> tuple[R, SparseSoupTrainingArguments]:
    """
    Settings of a YAML file, overridden by the command line.

    The file is the first argument, or lies beside the script: `NAME.yaml`, with `--demo` `NAME_demo.yaml`.
    """
    name = f"{Path(script).stem}_demo.yaml" if "--demo" in argv else f"{Path(script).stem}.yaml"
    settings = Path(script).with_name(name)
    if argv and argv[0].endswith((".yaml", ".yml")):
        settings, argv = Path(argv[0]), argv[1:]
    described = sys.modules[recipe_class.__module__].__doc__
    parser = _Parser(
        (recipe_class, SparseSoupTrainingArguments),  # pyright: ignore
        usage="%(prog)s [FILE.yaml] [--option VALUE ...]",
        description=described,
        epilog="In this order: options of the task, of Trainer, of the soup.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.set_defaults(**read_settings(settings, parser))
    try:
        recipe, args, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    except (ValueError, ImportError) as error:  # Values that do not go together, a package that an option needs.
        raise RecipeError(str(error)) from None
    if rest:
        parser.refuse(rest)
    return recipe, args


def read_settings(path: Path, parser: HfArgumentParser) -> dict[str, Any]:
    """Settings of a YAML file; unknown ones are refused by name."""
    if not path.is_file():
        raise RecipeError(f"Expected a YAML file of settings at {path}, found none.")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(values) - known)
    if unknown:
        raise RecipeError(
            f"{path} must hold settings of this recipe, got {unknown}.{nearest(unknown[0], sorted(known))} See --help."
        )
    return values
