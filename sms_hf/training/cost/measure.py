"""A few real steps, to tell how long a run will take; and what a plan needs to know of a live model and its disk."""

import copy
import gc
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback

from ...sparsity.masks import Masks
from ...sparsity.pruning import find_weights
from ..arguments import SparseSoupArguments
from ..masked.candidate import Retraining
from ..masked.repairs import forget_accelerate_
from ..plan.candidates import Phase
from ..processes.say import say
from ..random_states import random_states_kept
from ..run_directory import RunDirectory
from ..spawning import silent_args, spawn, without_progress
from .forecast import Forecast, ModelFacts, forecast
from .lines import estimate_line

try:
    import resource
except ImportError:  # Windows.
    resource = None

WARM_UP, STEPS = 1, 3
"""Steps that are not counted (allocations, the first batch), and those that are."""


@dataclass(frozen=True)
class Measurement:
    """
    What a few steps of training showed.

    Attributes:
        seconds_per_step (`float`): Median over `STEPS` optimizer steps, data loading included.
        peak_bytes (`int`, *optional*): GPU: most memory allocated meanwhile. CPU: most that the process ever held.
    """

    seconds_per_step: float
    peak_bytes: int | None


def forecast_run(
    trainer: Any,
    processes: int | None = None,
    measure: bool = True,
    free_bytes: int | None = None,
    plan: Sequence[Phase] | None = None,
) -> Forecast:
    """
    What `trainer.train()` will cost. Changes nothing: not the model, nor any random state, nor `output_dir`.

    Args:
        trainer ([`SparseSoupTrainer`]): Before `train()`. Of a run that is to be resumed, finished candidates count no more.
        processes (`int`, *optional*): Default: those of this launch.
        measure (`bool`, *optional*, defaults to `True`): Train a copy for four steps, for an estimate of time.
        free_bytes (`int`, *optional*): Default: what is free where `output_dir` lies.
        plan (`Sequence[Phase]`, *optional*): Default: `trainer.args.make_plan()`.
    """
    args, run = trainer.args, RunDirectory(trainer.args.output_dir)
    phases = args.make_plan() if plan is None else plan
    done = {
        (phase.number, candidate.name)
        for phase in phases
        for candidate in phase.candidates
        if run.phase(phase.number).candidate_record(candidate.name).is_file()
    }
    measured = measure_steps(trainer) if measure else None
    return forecast(
        phases,
        args,
        model_facts(trainer.model, args, _saved_bytes(trainer.processing_class)),
        args.processes.world_size if processes is None else processes,
        num_examples(trainer)["train_dataset"],
        seconds_per_step=measured and measured.seconds_per_step,
        peak_bytes=measured and measured.peak_bytes,
        free_bytes=free_disk(run) if free_bytes is None else free_bytes,
        finished=done,
    )


def forecast_model(
    model: nn.Module,
    args: SparseSoupArguments,
    trainer_class: Any,
    processes: int | None = None,
    num_examples: int | None = None,
    sequence_length: int = 128,
    other_bytes: int = 0,
) -> Forecast:
    """
    What a run with this model will cost, without its data: steps are measured on made-up rows.

    Args:
        model (`nn.Module`): To be pruned; stays as it is.
        args ([`SparseSoupArguments`]): Of the run.
        trainer_class (`type`): What trains, for example `SparseSoupTrainer`.
        processes, num_examples: As in [`forecast`].
        sequence_length (`int`, *optional*, defaults to 128): Tokens of a row, on both sides of a translation.
        other_bytes (`int`, *optional*): As in [`ModelFacts`].
    """
    facts, free = model_facts(model, args, other_bytes), free_disk(RunDirectory(str(args.output_dir)))
    cost = forecast(args.make_plan(), args, facts, processes, num_examples, free_bytes=free)
    tokens = int(min(sequence_length, _most_tokens(model)))
    if tokens < sequence_length:
        cost = replace(
            cost, notes=(f"a step is measured on rows of {tokens} tokens, all that the model takes", *cost.notes)
        )
    rows = made_up_rows(model, step_rows := args.train_batch_size * args.gradient_accumulation_steps, tokens)
    if rows is None:
        what = f"no rows can be made up for {type(model).__name__}; forecast_run(trainer) measures on its own data"
        return _without_time(cost, what)
    try:
        # A folder of its own: Trainer makes the one that it is given.
        with tempfile.TemporaryDirectory() as folder:
            own = silent_args(args, output_dir=folder)
            measured = measure_steps(trainer_class(model, own, train_dataset=rows, eval_dataset=rows[:step_rows]))
    except Exception as error:  # Disk and memory are told all the same.
        return _without_time(cost, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    return replace(cost, seconds_per_step=measured.seconds_per_step, peak_bytes=measured.peak_bytes)


def _without_time(cost: Forecast, reason: str) -> Forecast:
    return replace(cost, notes=(f"no estimate of time: {reason}", *cost.notes))


# ---- Facts ---------------------------------------------------------------------------------------------------------------


def model_facts(model: nn.Module, args: SparseSoupArguments, other_bytes: int = 0) -> ModelFacts:
    """Count a model; `other_bytes` as in [`ModelFacts`]."""
    stored = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values() if tensor.numel()}
    parameters = list(model.parameters())
    prunable = prunable_weights(model, args)
    return ModelFacts(
        num_parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(stored.values()),
        num_prunable=sum(weight.numel() for weight in prunable.values()),
        num_trainable=sum(
            p.numel() for p in parameters if p.requires_grad and (args.retrained == "all" or p.dim() < 2)
        ),
        other_bytes=other_bytes,
    )


def prunable_weights(model: nn.Module, args: SparseSoupArguments) -> Mapping[str, torch.Tensor]:
    """The parameters of a model that a run will cover with masks."""
    return find_weights(model, args.pruning_pattern, args.target_modules, args.exclude_modules)


def num_examples(trainer: Any) -> dict[str, int | None]:
    """Rows of a trainer's data sets; `None` for a stream."""
    data = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}
    return {name: len(d) if hasattr(d, "__len__") else None for name, d in data.items()}


def free_disk(run: RunDirectory) -> int:
    """Bytes that a run may fill where its folder lies: those that are free, and those that it fills already."""
    there = run.root.absolute()
    while not there.exists():
        there = there.parent
    internal = run.run_record.parent
    return shutil.disk_usage(there).free + sum(path.stat().st_size for path in internal.rglob("*") if path.is_file())


def _saved_bytes(processor: Any) -> int:
    """Of the tokenizer, which is written into every folder."""
    if not hasattr(processor, "save_pretrained"):
        return 0
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _most_tokens(model: nn.Module) -> float:
    """That a row may have; of models without learned positions, any number."""
    config = cast("Any", getattr(model, "config", None))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None) or math.inf


def made_up_rows(model: nn.Module, num_rows: int, sequence_length: int) -> list[dict[str, torch.Tensor]] | None:
    """
    The same row, as the model takes it, often enough for one step; None for models that take something else.

    Args:
        model (`nn.Module`): Translator, language model, classifier of texts or images, or segmentation.
        num_rows (`int`): Rows of a step.
        sequence_length (`int`): Tokens of a row of text.
    """
    config, kind = cast("Any", getattr(model, "config", None)), type(model).__name__
    generator = torch.Generator().manual_seed(0)
    source = getattr(model, "main_input_name", None)
    if source == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        row = {"pixel_values": torch.rand(getattr(config, "num_channels", 3), height, width, generator=generator)}
        labels = torch.zeros((height, width) if "Segmentation" in kind else (), dtype=torch.long)
        known = kind.endswith(("ForImageClassification", "ForSemanticSegmentation"))
    elif source == "input_ids":
        size = (sequence_length,)
        row = {"input_ids": torch.randint(config.get_text_config().vocab_size, size, generator=generator)}
        row["attention_mask"] = torch.ones(size, dtype=torch.long)
        labels = row["input_ids"]
        if kind.endswith(("ForSequenceClassification", "ForTokenClassification")):
            labels = torch.zeros(() if "Sequence" in kind else size, dtype=torch.long)
        known = getattr(config, "is_encoder_decoder", False) or kind.endswith(
            ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
        )
    else:
        return None
    return [{**row, "labels": labels}] * num_rows if known else None


# ---- Steps ---------------------------------------------------------------------------------------------------------------


def measure_steps(trainer: Any) -> Measurement:
    """
    Train a copy of a trainer's model for a few steps on the trainer's own data, in a folder that is removed again.

    Random states of Python, NumPy and torch are put back, so that what follows computes what it would have. User's callbacks
    and loggers see nothing of it. A stream that can be read only once would lose its first rows.
    """
    device = trainer.args.device
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, random_states_kept(device):
        model = copy.deepcopy(trainer.model)
        forget_accelerate_(model)
        probe = without_progress(spawn(trainer, model, _probe_args(trainer.args, folder)))
        probe.add_callback(clock)
        probe.masks, probe.retraining = Masks.all_kept(prunable_weights(model, trainer.args)), Retraining()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        probe.train()
        peak = _peak_bytes(device)
        del probe, model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return Measurement(clock.seconds_per_step(WARM_UP), peak)


def _probe_args(args: SparseSoupArguments, folder: str) -> SparseSoupArguments:
    return silent_args(
        args,
        output_dir=folder,
        max_steps=WARM_UP + STEPS,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        candidate_processes=1,
        fsdp=None,
        fsdp_config=None,
    )


class _Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.ends.append(time.perf_counter())

    def seconds_per_step(self, skip: int) -> float:
        """Median of all steps but the first ones."""
        ends = self.ends[skip - 1 :]
        return statistics.median(after - before for before, after in pairwise(ends))


class TimeEstimate(_Clock):
    """
    After the first steps of the first candidate, prints once how long the run will take.

    Args:
        cost ([`Forecast`]): Of the run.
        num_steps (`int`, *optional*, defaults to 5): Steps to look at; the first one of a training does not count.
    """

    def __init__(self, cost: Forecast, num_steps: int = 5):
        super().__init__()
        self._cost: Forecast | None = cost
        self._num_steps = num_steps
        self._begin = time.perf_counter()
        self.seconds_per_score: float | None = None
        """Of the dense model's score, where it was made in this run."""

    def on_step_end(self, args, state, control, **kwargs):
        if self._cost is None:
            return
        super().on_step_end(args, state, control, **kwargs)
        if len(self.ends) > self._num_steps:
            examples = args.train_batch_size * args.gradient_accumulation_steps
            seconds = self.seconds_per_step(1) * self._cost.step_examples / examples
            passed = time.perf_counter() - self._begin
            line = estimate_line(self._cost, seconds, self.seconds_per_score, passed)
            self._cost = None
            if line is not None:
                say(line)


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
