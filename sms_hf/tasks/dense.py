"""The dense model of a demo."""

from collections.abc import Callable
from pathlib import Path

from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from ..training.arguments import SparseSoupTrainingArguments
from ..training.live.screen import Screen
from ..training.live.terminal import watched
from ..training.live.watch import TrainingWatch
from ..training.masked.checkpoints import no_progress_bars
from ..training.processes.say import say
from ..training.spawning import without_progress
from .settings import CommonArguments
from .task import Task


def demo_model(
    recipe: CommonArguments, args: SparseSoupTrainingArguments, make: Callable[[], Task], optimizer=None
) -> str:
    """
    Folder of the demo's dense model; where it is not there yet, the main process trains it with an ordinary Trainer.

    For a soup of folders that are there (`soup_of`) it is the first of them.

    Args:
        make (`Callable`): Gives the task with the model to train, freshly initialised.
        optimizer (`Callable`, *optional*): Model -> optimizer. Default: that of `args`.
    """
    if recipe.soup_of:
        return recipe.soup_of[0]
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
    "log_level",
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
    say(f"demo: training a dense {name} with {size:,} parameters on {len(task.train):,} examples")
    trainer = Trainer(
        model=task.model,
        args=dense_args,
        train_dataset=task.train,
        data_collator=task.data_collator,
        processing_class=task.processing_class,
        optimizers=(optimizer(task.model) if optimizer else None, None),
    )
    facts, screen = (
        {"phase": 0, "name": "dense model"},
        Screen(f"{folder.parent.name}: a model to prune", folder=folder),
    )
    without_progress(trainer).add_callback(TrainingWatch("dense model", facts, folder / "train.log"))
    with watched(args.processes, args, f"demo/{folder}", screen):
        trainer.train()
    with no_progress_bars():
        trainer.save_model()
    (folder / TRAINING_ARGS_NAME).unlink()  # A pickle that nobody needs, with the user's token in it.
