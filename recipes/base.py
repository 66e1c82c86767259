"""What all recipes share: settings from YAML and the command line, the dense model of a demo, the job and its table."""

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import yaml
from transformers import AutoConfig, HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

import sms_hf
from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments, format_report
from sms_hf.choices import nearest

T = TypeVar("T")
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


@dataclass
class Task:
    """Data, model and metric: all that makes a recipe this recipe. The rest is the trainer."""

    model: PreTrainedModel
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset | None = None
    data_collator: Any = None
    processing_class: Any = None
    compute_metrics: Callable | None = None
    preprocess_logits_for_metrics: Callable | None = None
    footnote: str = ""
    """A line under the table: how the metric was computed."""
    card: dict[str, Any] = field(default_factory=dict)
    """For the model card: keyword arguments of `trainer.push_to_hub`."""
    perplexity: bool = False
    """Whether the metric is a loss per token that the table shows as exp(loss)."""


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
    parser = HfArgumentParser((recipe_class, SparseSoupTrainingArguments), description=described)  # pyright: ignore
    parser.set_defaults(**read_settings(settings, parser))
    recipe, args = parser.parse_args_into_dataclasses(argv)
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
    Splits from local files, each read by its suffix: JSON Lines, CSV or Parquet.

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
        kind = kinds.get(Path(name).suffix)
        if kind is None:
            raise RecipeError(f"Expected a file that ends with one of {', '.join(kinds)}, got {name}.")
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


def model_for_classes(
    auto_class: Any, name: str, names: Sequence[str], seed: int, instead: str
) -> tuple[PreTrainedModel, list[str]]:
    """
    A classifier of rows, images or pixels, and the names of the classes in the order of its outputs.

    A head that is not for these classes is replaced, and a line says so.

    Args:
        auto_class (`type`): For example `AutoModelForImageClassification`.
        names (`Sequence[str]`): Classes of the data; numbers stand for the model's own, in order.
        seed (`int`): Of a new head; the global generator is left alone.
        instead (`str`): As in [`from_hub`].
    """
    config: Any = from_hub(name, lambda: AutoConfig.from_pretrained(name), instead)
    theirs, names = [config.id2label[i] for i in range(config.num_labels)], list(names)
    order = common_order(theirs, names)
    if not (order and all(label.isdigit() for label in names)):
        config.id2label = dict(enumerate(order or names))
        config.label2id = {label: i for i, label in config.id2label.items()}
    options = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = from_hub(name, lambda: auto_class.from_pretrained(name, **options), instead)
        new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if order is None and not new:  # As many classes, but others.
            body, model = model.base_model.state_dict(), auto_class.from_config(config)
            model.base_model.load_state_dict(body)
            new = [key for key, _ in model.named_parameters() if not key.startswith(f"{model.base_model_prefix}.")]
    if new:
        print(f"{name} has no head for the classes {names} (its own: {theirs}): new are {', '.join(new)}.", flush=True)
    return model, order or names


def common_order(theirs: list[str], names: list[str]) -> list[str] | None:
    """Our names in the order of the model's outputs; `None` where the model's classes are others."""
    ours = {name.lower(): name for name in names}
    if sorted(ours) == sorted(label.lower() for label in theirs):
        return [ours[label.lower()] for label in theirs]
    unnamed = all(name.isdigit() for name in names) or theirs == [f"LABEL_{i}" for i in range(len(theirs))]
    return names if unnamed and len(theirs) == len(names) else None


def demo_model(
    recipe: CommonArguments, args: SparseSoupTrainingArguments, make: Callable[[], Task], optimizer=None
) -> str:
    """
    Folder of the demo's dense model; where it is not there yet, the main process trains it with an ordinary Trainer.

    Args:
        make (`Callable`): Gives the task with the model to train, freshly initialised.
        optimizer (`Callable`, *optional*): Model -> optimizer. Default: that of `args`.
    """
    # Trainer.push_to_hub leaves out what begins with an underscore.
    folder = Path(recipe.dense_dir or Path(str(args.output_dir)) / "_dense")
    args.processes.on_main(f"demo/{folder}", lambda: _train_dense(folder, recipe, args, make, optimizer))
    return str(folder)


SHARED_WITH_DENSE = (
    "per_device_train_batch_size",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "train_sampling_strategy",
    "remove_unused_columns",
    "dataloader_pin_memory",
    "disable_tqdm",
    "logging_steps",
    "use_cpu",
    "bf16",
    "seed",
)
"""Arguments that the training of a demo's dense model takes from those of the run."""


def _train_dense(folder: Path, recipe: CommonArguments, args, make: Callable[[], Task], optimizer) -> None:
    if (folder / "model.safetensors").is_file():
        return
    task = make()
    dense_args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.dense_epochs,
        save_strategy="no",
        report_to="none",
        **{name: getattr(args, name) for name in SHARED_WITH_DENSE},
    )
    name, size = type(task.model).__name__, task.model.num_parameters()
    print(f"demo: training a dense {name} with {size:,} parameters on {len(task.train):,} examples", flush=True)
    trainer = Trainer(
        model=task.model,
        args=dense_args,
        train_dataset=task.train,
        data_collator=task.data_collator,
        processing_class=task.processing_class,
        optimizers=(optimizer(task.model) if optimizer else None, None),
    )
    trainer.train()
    trainer.save_model()
    (folder / TRAINING_ARGS_NAME).unlink()  # A pickle that nobody needs, with the user's token in it.


# ---- The job -----------------------------------------------------------------------------------------------------------


def as_perplexity(
    report: Mapping[str, Any], scores: Mapping[str, float] | None
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """A report of losses and its test scores, as `format_report` takes them, with exp(loss) in place of each loss."""

    scored = ("score", "mean_score", "best_score")

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if isinstance(value, dict):
            return {k: exp(v) if k in scored and v is not None else convert(v) for k, v in value.items()}
        return value

    def exp(loss: float) -> float:
        return math.inf if loss > 700 else math.exp(loss)

    phases = convert(list(report["phases"]))
    for phase in phases:
        scores_of = [c["score"] for c in phase["candidates"] if not c.get("failure")]
        if phase.get("mean_score") is not None and scores_of:
            phase["mean_score"] = sum(scores_of) / len(scores_of)  # As the table does with test scores.
    dense = {**report["dense"], "perplexity": exp(report["dense"][report["metric"]])}
    converted = {**report, "metric": "perplexity", "dense": dense, "phases": phases}
    return converted, None if scores is None else {name: exp(loss) for name, loss in scores.items()}


def make_trainer(task: Task, args: SparseSoupTrainingArguments) -> SparseSoupTrainer:
    trainer = SparseSoupTrainer(
        model=task.model,
        args=args,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.processing_class,
        data_collator=task.data_collator,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.preprocess_logits_for_metrics,
    )
    trainer.card = task.card
    return trainer


def prepare(args: SparseSoupTrainingArguments) -> None:
    """Settings that depend on the machine: to be called before the task is loaded."""
    args.dataloader_pin_memory &= torch.cuda.is_available()
    if not args.processes.is_main:
        datasets.disable_progress_bars()


def run(
    argv: list[str], script: str, recipe_class: type[R], load_task: Callable[[R, SparseSoupTrainingArguments], Task]
) -> None:
    """The whole recipe: settings, task, soup, test scores, table, upload. What the user can mend ends it in a sentence."""
    try:
        _run(argv, script, recipe_class, load_task)
    except (ValueError, OSError, RuntimeError) as error:
        if not _was_raised_here(error):
            raise
        raise RecipeError(str(error)) from None


def _was_raised_here(error: BaseException) -> bool:
    """Whether the last to raise was a check of ours, and not a library in the middle of its work."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    homes = (Path(sms_hf.__file__).parent, Path(__file__).parent)
    return frame is not None and any(Path(frame.tb_frame.f_code.co_filename).is_relative_to(home) for home in homes)


def _run(
    argv: list[str], script: str, recipe_class: type[R], load_task: Callable[[R, SparseSoupTrainingArguments], Task]
) -> None:
    recipe, args = parse(argv, script, recipe_class)
    prepare(args)
    push, args.push_to_hub = args.push_to_hub, False  # Once, when the test scores are there.
    task = load_task(recipe, args)
    dense = copy.deepcopy(task.model)
    trainer = make_trainer(task, args)
    if push:
        trainer.init_hf_repo()  # What may not be pushed should fail before hours of training.
    trainer.train(resume_from_checkpoint=recipe.resume)
    scores = None if task.test is None else trainer.evaluate_run(task.test, dense=dense)
    if args.processes.is_main:
        assert trainer.report is not None
        report, footnote = trainer.report, task.footnote
        if task.perplexity:
            report, scores = as_perplexity(report, scores)
            footnote = f"Perplexity: exp(loss per token). {footnote}"
        print(f"\n{format_report(report, scores)}")
        tested = f", tested on {len(task.test):,}" if task.test is not None else ""
        print(f"\n{footnote}chosen on {len(task.validation):,} validation rows{tested}.")
        how = "sms_hf.load" if args.sparse_format == "compact" else f"{type(task.model).__name__}.from_pretrained"
        print(f'The model: {how}("{args.output_dir}")')
        if push:
            commit = trainer.push_to_hub(**{"dataset_tags": recipe.hub_dataset, **task.card})
            print(f"Pushed: {commit.commit_url}")
