"""What a run will cost, before it starts: trainings, steps, disk, memory, time. Pure functions of the plan."""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...soup.lottery_pools import COEFFICIENTS
from ..arguments import SparseSoupArguments
from ..plan.candidates import Candidate, Phase
from ..processes.sharding import wants_sharding

MODELS_BESIDE_CANDIDATES = 1
"""Models that a phase needs besides its candidates: first the parent, then the trial that becomes the soup."""

SMALL_FILES = 64_000
"""Bytes of what lies beside weights in any folder: configuration, training arguments, random states, records."""

STATES = {
    "adafactor": 0,  # Rows and columns only.
    "lomo": 0,
    "schedule_free_sgd": 1,
    "sgd": 0,
    "adagrad": 1,
    "rmsprop": 1,
    "lion": 1,
    "ademamix": 3,
    "grokadamw": 3,
}
"""Part of an optimizer's name -> numbers that it keeps for a parameter; the first that fits counts, all others keep two."""


@dataclass(frozen=True)
class ModelFacts:
    """
    What a plan needs to know of a model.

    Attributes:
        num_parameters (`int`): All of them, tied ones once.
        weight_bytes (`int`): Of the weights as `save_pretrained` writes them.
        num_prunable (`int`): Weights that masks cover.
        num_trainable (`int`, *optional*): Parameters with a gradient. Default: all.
        other_bytes (`int`): What is written beside the weights into every folder, such as the tokenizer.
    """

    num_parameters: int
    weight_bytes: int
    num_prunable: int
    num_trainable: int | None = None
    other_bytes: int = 0

    @property
    def itemsize(self) -> float:
        """Bytes of one weight."""
        return self.weight_bytes / max(self.num_parameters, 1)

    @property
    def trainable(self) -> int:
        return self.num_parameters if self.num_trainable is None else self.num_trainable

    @property
    def mask_bytes(self) -> int:
        """Of `masks.safetensors`: one bit a prunable weight."""
        return math.ceil(self.num_prunable / 8)

    @property
    def folder_bytes(self) -> int:
        """A model folder with its masks."""
        return self.weight_bytes + self.mask_bytes + self.other_bytes + SMALL_FILES


@dataclass(frozen=True)
class Forecast:
    """
    What a run will cost.

    Attributes:
        processes (`int`): That train candidates.
        group_size (`int`): Processes that train a candidate together.
        candidates (`tuple[int, ...]`): Candidates of every phase.
        steps (`tuple[int | None, ...]`): Optimizer steps of every training that is still to come, in order; None where the
            number of training examples is not known.
        serial_steps (`float`, *optional*): Steps one after the other, when candidates wait in a queue for the next free
            group of processes. A candidate whose steps see twice the examples of the arguments' own counts double.
        serial_scores (`int`): Evaluations one after the other at most, after that of the dense model: of candidates in their
            queue, and of what the soup tries.
        disk_bytes (`int`): At the fullest, in `output_dir`, without the files of loggers.
        free_bytes (`int`, *optional*): That the run may fill, what it holds already included.
        memory_bytes (`int`): Of one process on the device that trains, without activations.
        copy_bytes (`int`): Of one process on the CPU: the weights that candidates are copied from, and bool masks.
        on_cpu (`bool`): Whether both lie in the same memory.
        step_examples (`int`): Examples of a step on one process, by the run's own arguments.
        seconds_per_step (`float`, *optional*): Measured, for a step by the run's own arguments.
        peak_bytes (`int`, *optional*): Measured: most memory that this process held, activations included.
        notes (`tuple[str, ...]`): What could not be told, and why.
    """

    processes: int
    group_size: int
    candidates: tuple[int, ...]
    steps: tuple[int | None, ...]
    serial_steps: float | None
    serial_scores: int
    disk_bytes: int
    free_bytes: int | None
    memory_bytes: int
    copy_bytes: int
    on_cpu: bool
    step_examples: int
    seconds_per_step: float | None = None
    peak_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_phases(self) -> int:
        return len(self.candidates)

    @property
    def trainings(self) -> int:
        """Candidates that are still to be trained."""
        return len(self.steps)

    @property
    def total_steps(self) -> int | None:
        known = [steps for steps in self.steps if steps is not None]
        return sum(known) if len(known) == len(self.steps) else None

    @property
    def seconds(self) -> float | None:
        """Of all trainings, from the first to the last; None without a measurement. Scoring and averaging come on top."""
        if self.seconds_per_step is None or self.serial_steps is None:
            return None
        return self.seconds_per_step * self.serial_steps


def forecast(
    plan: Sequence[Phase],
    args: SparseSoupArguments,
    facts: ModelFacts,
    processes: int | None = None,
    num_examples: int | None = None,
    seconds_per_step: float | None = None,
    peak_bytes: int | None = None,
    free_bytes: int | None = None,
    finished: Collection[tuple[int, str]] = (),
) -> Forecast:
    """
    What a run will cost.

    Disk: a phase holds its candidates and one model besides (the parent, later the trial that becomes the soup), so with the
    soups of the phases before it `m + num_phases` models in the last one. Phases that are not merged wait with their
    candidates and the parent until one is; with `keep_candidates` all stay. Candidates that are in training have Trainer
    checkpoints (weights, optimizer), `save_total_limit` and the one that is being written, or all; they go when the
    candidate is done. At the end there are the soups and the final model, in the root. Masks take a bit a prunable weight
    in each folder.

    Memory of a process: weights, gradients, the optimizer's state, the masks in the dtype of the weights, with feedback (DPF)
    the dense weights, all of it shared with the group where it is sharded; the model that all are copied from stays on the
    CPU. Averaging and scoring need less than training.

    Args:
        plan (`Sequence[Phase]`): `args.make_plan()`.
        args ([`SparseSoupArguments`]): Of the run.
        facts ([`ModelFacts`]): Of the model.
        processes (`int`, *optional*): That train candidates. Default: `args.candidate_processes`.
        num_examples (`int`, *optional*): Rows of the training data, if known.
        seconds_per_step (`float`, *optional*): A measurement, as `peak_bytes`.
        free_bytes (`int`, *optional*): Of the disk; none: no warning.
        finished (`Collection[tuple[int, str]]`, *optional*): Phase and name of candidates that need not be trained.

    Raises:
        ValueError: For a number of examples below 1, or of processes that is no multiple of `args.candidate_processes`.
    """
    size = args.candidate_processes
    processes = size if processes is None else processes
    for name, value in (("processes", processes), ("num_examples", num_examples)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if processes % size:
        raise ValueError(f"processes must be a multiple of candidate_processes={size}, got {processes}.")
    groups = processes // size
    todo = [[c for c in p.candidates if (p.number, c.name) not in finished and not _untrained(args, c)] for p in plan]
    steps = [
        num_steps(args, c.overrides, num_examples, p.batches) for p, some in zip(plan, todo, strict=True) for c in some
    ]
    serial, notes = None, []
    if None not in steps:
        serial = sum(
            _serial_steps(args, phase, some, processes, num_examples) for phase, some in zip(plan, todo, strict=True)
        )
    else:
        what = "the number of training examples is not known (num_examples)"
        notes.append(f"{what}: no number of steps, no estimate of time")
        if _saves(args, {}, None, 1) is None:
            notes.append("checkpoints of a candidate cannot be counted without it: two are taken")
    together = min((p.group_size(size, processes) for p in plan if p.batches > 1), default=args.trunk_processes)
    if together < args.trunk_processes:
        notes.append(
            f"what candidates share is trained by {together} of {processes} processes together, which accumulate gradients: "
            f"trunk_processes={args.trunk_processes} has no larger divisor in common with them"
        )
    trained = [(phase, candidate) for phase, some in zip(plan, todo, strict=True) for candidate in some]
    return Forecast(
        processes=processes,
        group_size=size,
        candidates=tuple(len(phase.candidates) for phase in plan),
        steps=tuple(steps),
        serial_steps=serial,
        serial_scores=sum(_scores(p, len(some), groups, args.soup_method) for p, some in zip(plan, todo, strict=True)),
        disk_bytes=_disk_bytes(plan, args, facts, groups, num_examples),
        free_bytes=free_bytes,
        memory_bytes=max((_memory_bytes(args, facts, *each) for each in trained), default=facts.weight_bytes),
        copy_bytes=facts.weight_bytes + facts.num_prunable,
        on_cpu=args.device.type == "cpu",
        step_examples=step_examples(args, {}),
        seconds_per_step=seconds_per_step,
        peak_bytes=peak_bytes,
        notes=tuple(notes),
    )


def _scores(phase: Phase, trained: int, groups: int, soup_method: str) -> int:
    """Evaluations of a phase one after the other, at most: greedy tries all but the best candidate on top of it."""
    others = max(len(phase.candidates) - 1, 0)
    trials = {"greedy": others, "lottery-pools": len(COEFFICIENTS) * others}
    tried = trials.get(soup_method, 1) if phase.merge == "soup" else 1
    return math.ceil(trained / groups) + (0 if phase.merge == "none" or len(phase.candidates) < 2 else tried)


# ---- Steps ---------------------------------------------------------------------------------------------------------------


def makespan(lengths: Sequence[float], processes: int) -> float:
    """When the last of several jobs ends, if each is taken, in order, by the process that is free first."""
    free = [0.0] * processes
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def _serial_steps(
    args: SparseSoupArguments, phase: Phase, todo: Sequence[Candidate], processes: int, num_examples: int | None
) -> float:
    """Steps of a phase one after the other, in units of steps by the run's own arguments on one process."""
    size = phase.group_size(args.candidate_processes, processes)
    weights = [step_examples(args, c.overrides) / step_examples(args, {}) * max(phase.batches / size, 1) for c in todo]
    steps = [num_steps(args, c.overrides, num_examples, phase.batches) or 0 for c in todo]
    return makespan([count * weight for count, weight in zip(steps, weights, strict=True)], processes // size)


def num_steps(
    args: SparseSoupArguments, overrides: Mapping[str, Any], num_examples: int | None, batches: int = 1
) -> int | None:
    """
    Optimizer steps of a candidate, as Trainer counts them; None where they depend on a number of examples not known.

    `batches`: of a step of its phase.
    """
    max_steps, epochs = _value(args, overrides, "max_steps"), _value(args, overrides, "num_train_epochs")
    if max_steps > 0:
        return max_steps
    if epochs <= 0:
        return 0
    per_epoch = _steps_per_epoch(args, overrides, num_examples, batches)
    return None if per_epoch is None else math.ceil(epochs * per_epoch)


def step_examples(args: SparseSoupArguments, overrides: Mapping[str, Any]) -> int:
    """Examples that an optimizer step of a candidate sees on one process."""
    batch = _value(args, overrides, "per_device_train_batch_size")
    return batch * _value(args, overrides, "gradient_accumulation_steps")


def _steps_per_epoch(
    args: SparseSoupArguments, overrides: Mapping[str, Any], num_examples: int | None, batches: int
) -> int | None:
    if num_examples is None:
        return None
    there = num_examples / _value(args, overrides, "per_device_train_batch_size")
    together = max(batches, args.candidate_processes)
    turns = math.floor(there) // together if args.dataloader_drop_last else math.ceil(math.ceil(there) / together)
    return max(math.ceil(turns / _value(args, overrides, "gradient_accumulation_steps")), 1)


def _untrained(args: SparseSoupArguments, candidate: Candidate) -> bool:
    """A candidate of zero epochs: it is only scored."""
    return num_steps(args, candidate.overrides, None) == 0


def _value(args: SparseSoupArguments, overrides: Mapping[str, Any], name: str) -> Any:
    return overrides.get(name, getattr(args, name))


# ---- Disk ----------------------------------------------------------------------------------------------------------------


def _disk_bytes(
    plan: Sequence[Phase], args: SparseSoupArguments, facts: ModelFacts, groups: int, num_examples: int | None
) -> int:
    """At the fullest: every phase while it is trained and while it is merged, and the end."""
    stay, wait, peak = 0, 0, 0  # Models that stay until the end, and those that wait for the next merge.
    handed = 0  # Bytes of the optimizers with which this phase goes on, until it is merged.
    for phase in plan:
        count, parents = len(phase.candidates), 0 if phase.own_parents else MODELS_BESIDE_CANDIDATES
        writing = sorted(
            (_checkpoint_bytes(args, facts, phase, c, num_examples) for c in phase.candidates), reverse=True
        )
        here = stay + wait + count
        states = [optimizer_bytes(args, c.overrides, facts) for c in phase.candidates if phase.keeps_optimizers]
        optimizers = handed + sum(states)
        peak = max(peak, (here + parents) * facts.folder_bytes + sum(writing[:groups]) + optimizers)
        if phase.merge == "none":
            wait += count + parents
            continue
        kept_parent = parents if args.keep_candidates or args.keeps_parents else 0
        peak = max(peak, (here + kept_parent + MODELS_BESIDE_CANDIDATES) * facts.folder_bytes + optimizers)
        handed = sum(states)
        stay, wait = stay + 1 + (wait + count + parents if args.keep_candidates else 0), 0
    return max(peak, (stay + wait) * facts.folder_bytes + _final_bytes(plan, args, facts))


def _final_bytes(plan: Sequence[Phase], args: SparseSoupArguments, facts: ModelFacts) -> int:
    """The root: the dense form is whole before a compact one is written beside it."""
    if args.sparse_format == "dense":
        return facts.folder_bytes
    kept = facts.weight_bytes - plan[-1].final_sparsity * facts.num_prunable * facts.itemsize
    return facts.folder_bytes + math.ceil(kept) + facts.mask_bytes


def _checkpoint_bytes(
    args: SparseSoupArguments, facts: ModelFacts, phase: Phase, candidate: Candidate, num_examples: int | None
) -> int:
    """All checkpoints of a candidate at the fullest."""
    saves = _saves(args, candidate.overrides, num_examples, phase.batches)
    kept = 2 if saves is None else saves
    limit = args.save_total_limit
    if limit is not None and limit > 0:
        # The best one is kept besides the last, and the oldest goes only when the new one is written.
        kept = min(max(limit, 2 if args.load_best_model_at_end else 1) + 1, kept if saves is not None else math.inf)
    optimizer = 0 if args.save_only_model else optimizer_bytes(args, candidate.overrides, facts)
    dense = facts.num_prunable * facts.itemsize if phase.feedback else 0
    mean = facts.trainable * max(facts.itemsize, 4) if args.tail_average is not None else 0
    return math.ceil(kept * (facts.folder_bytes + optimizer + dense + mean))


def _saves(
    args: SparseSoupArguments, overrides: Mapping[str, Any], num_examples: int | None, batches: int
) -> int | None:
    """How often Trainer saves during a candidate's training; None where that is not known."""
    strategy, every = str(getattr(args.save_strategy, "value", args.save_strategy)), args.save_steps
    if strategy == "best":  # At most after every evaluation.
        strategy, every = str(getattr(args.eval_strategy, "value", args.eval_strategy)), args.eval_steps
    steps = num_steps(args, overrides, num_examples, batches)
    if strategy == "no" or steps == 0:
        return 0
    if strategy == "epoch":
        if _value(args, overrides, "max_steps") <= 0:
            return math.ceil(_value(args, overrides, "num_train_epochs"))
        per_epoch = _steps_per_epoch(args, overrides, num_examples, batches)
        return None if steps is None or per_epoch is None else math.ceil(steps / per_epoch)
    if steps is None:
        return math.ceil(1 / every) if every and every < 1 else None
    every = every or args.logging_steps
    every = math.ceil(steps * every) if every < 1 else every
    return math.ceil(steps / every)  # The last step is saved, whatever its number.


# ---- Memory --------------------------------------------------------------------------------------------------------------


def _memory_bytes(args: SparseSoupArguments, facts: ModelFacts, phase: Phase, candidate: Candidate) -> int:
    """Of one process on the device that trains a candidate, without activations; of a sharded candidate, its share."""
    masks = (2 if phase.feedback else 1) * facts.num_prunable * facts.itemsize
    gradients = facts.trainable * facts.itemsize
    taught = any(_value(args, candidate.overrides, name) > 0 for name in ("distill_weight", "distill_features"))
    teacher = facts.weight_bytes if taught and not args.distill_cache else 0
    whole = facts.weight_bytes + gradients + optimizer_bytes(args, candidate.overrides, facts) + masks
    return (
        math.ceil(whole / (args.candidate_processes if wants_sharding(args) else 1)) + teacher
    )  # That is not sharded.


def optimizer_bytes(args: SparseSoupArguments, overrides: Mapping[str, Any], facts: ModelFacts) -> int:
    """
    What an optimizer keeps, about: numbers a parameter by its family, in the dtype of the weights or its own.

    Low-rank ones (GaLore, APOLLO) are counted as the AdamW that they save on.
    """
    optim = _value(args, overrides, "optim")
    name = str(getattr(optim, "value", optim))
    count = next((count for family, count in STATES.items() if family in name), 2)
    if name in ("sgd", "rmsprop"):
        settings = str(_value(args, overrides, "optim_args") or "").replace(" ", "").split(",")
        count += any(part.startswith("momentum=") and float(part.split("=")[1]) > 0 for part in settings)
    own = {"4bit": 0.5, "8bit": 1.0, "32bit": 4.0}
    size = next((size for bits, size in own.items() if name.endswith(bits)), facts.itemsize)
    return math.ceil(count * size * facts.trainable)
