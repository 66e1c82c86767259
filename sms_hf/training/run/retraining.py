"""One candidate: trained by a fresh trainer of the user's class, written, scored; its record last."""

import gc
import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ...files.records import read_record, write_record
from ...sparsity.masks import Masks
from ..live.watch import TrainingWatch
from ..masked.adapters import add_adapters, merge_lora
from ..masked.candidate import Norms, Retraining, all_finite
from ..masked.gradual import GradualPruning
from ..masked.optimizer_state import save_state
from ..masked.tail_average import TailAverage
from ..masked.teaching import ROW, NumberedRows, carry_rows
from ..plan.candidates import SEED_STRIDE, Candidate, Phase
from ..plan.rows import rows_of_candidate
from ..processes.failures import Diverged, ends_the_run, reason
from ..processes.groups import Group, agree, training_group
from ..processes.say import say, tell
from ..processes.sharding import plain_model
from ..processes.stopping import leave_if_wished
from ..run_directory import (
    PhaseFolder,
    last_checkpoint,
    model_files,
    remove_checkpoints,
    remove_unfinished,
    remove_weights,
)
from ..spawning import candidate_args, spawn, without_progress
from ..tracking import own_run
from .bench import Bench
from .parents import start_candidate_
from .progress import candidate_facts, candidate_line
from .records import without_timings


class Retrainer:
    """
    Retrains candidates, one after the other, alone or together with the other processes of a group.

    Args:
        bench ([`Bench`]): Where models come from.
        group ([`Group`]): The processes that train a candidate.
        adapters (`LoraConfig`, *optional*): What candidates are given on top of the parent, and merged into it at their end.
        callbacks (`Sequence`): Added to the trainer of every candidate, as they are.
    """

    def __init__(self, bench: Bench, group: Group, adapters: Any = None, callbacks: Sequence[Any] = ()):
        self._bench, self._group = bench, group
        self._adapters, self._callbacks = adapters, callbacks

    def retrain(self, phase: Phase, candidate: Candidate, folder: PhaseFolder, name: str) -> None:
        """
        Retrain one candidate, write and score it; its record last, even if it failed.

        Args:
            phase ([`Phase`]), candidate ([`Candidate`]): What to train.
            folder ([`PhaseFolder`]): Where.
            name (`str`): Equal in the group, and new for every candidate and attempt of the launch.

        Raises:
            RuntimeError: If too few candidates of the phase can be left.
        """
        start, bench, group = time.time(), self._bench, self._group
        leave_if_wished()
        bench.args.processes.beat(f"at {candidate.name} of phase {phase.number}")
        record: dict[str, Any] = {"name": candidate.name, "overrides": candidate.overrides, "steps": 0, "epochs": 0.0}
        record |= {"total_flos": 0.0, "train_loss": None, "log": [], "failure": None}
        if _predecessor(phase, candidate, folder) is None:
            record["failure"] = "it failed in the phase before"
        else:
            model = bench.copy()
            masks, norms = start_candidate_(bench, model, phase, candidate, folder)
            try:
                timeout = timedelta(seconds=bench.args.ddp_timeout)
                with training_group(group, name, bench.args.device.type == "cpu", timeout):
                    trainer = self._train(model, masks, norms, phase, candidate, folder, record)
                    trained = plain_model(trainer.model, bench.copy, keep=group.is_leader)
                    if phase.keeps_optimizers and group.is_leader:
                        save_state(trainer.optimizer, folder.optimizer(candidate.name))
                if trained is not None:
                    trainer.model = trainer.model_wrapped = trained
                    self._keep(trainer, phase, folder.candidate(candidate.name), record)
            except Exception as error:
                if ends_the_run(error):
                    raise
                record["failure"] = reason(error, bench.args)
                if not isinstance(error, Diverged):
                    record["traceback"] = traceback.format_exc()
                    traceback.print_exc()
                    if group.size > 1:  # The others of the group wait for this process, in vain.
                        self._write(phase, record, folder, start)
                        raise
        trainer = trained = model = None
        gc.collect()
        torch.cuda.empty_cache()
        if group.is_leader:
            self._write(phase, record, folder, start)

    def _train(
        self,
        model: torch.nn.Module,
        masks: Masks,
        norms: Norms,
        phase: Phase,
        candidate: Candidate,
        folder: PhaseFolder,
        record: dict[str, Any],
    ) -> Any:
        """A fresh trainer of the user's class, after its training."""
        bench, output = self._bench, folder.candidate(candidate.name)
        trainer = self._trainer_for(model, masks, norms, phase, candidate, folder)
        if trainer.args.max_steps > 0 or trainer.args.num_train_epochs > 0:
            # Without the optimizer's state a checkpoint would lead to another model.
            checkpoint = agree(lambda: None if trainer.args.save_only_model else last_checkpoint(output))
            with own_run(trainer, bench.args):
                result = trainer.train(resume_from_checkpoint=checkpoint)
            state = trainer.state
            record |= {"steps": result.global_step, "epochs": state.epoch, "total_flos": state.total_flos}
            trainer.take_tail_average()
            record |= {"train_loss": trainer.mean_loss, "log": [without_timings(entry) for entry in state.log_history]}
        if self._adapters is not None:
            trainer.model = trainer.model_wrapped = merge_lora(trainer.model, masks)
        return trainer

    def _trainer_for(
        self,
        model: torch.nn.Module,
        masks: Masks,
        norms: Norms,
        phase: Phase,
        candidate: Candidate,
        folder: PhaseFolder,
    ) -> Any:
        """A fresh trainer that knows what its candidate is trained on, and by what."""
        bench, position = self._bench, phase.candidates.index(candidate)
        args = candidate_args(bench.args, phase, candidate, folder.candidate(candidate.name), self._group.size)
        if self._adapters is not None:
            model = add_adapters(model, self._adapters, masks, args.seed)
        if args.retrained == "biases-and-norms":
            _train_biases_and_norms_(model)
        trainer = without_progress(spawn(bench.trainer, model, args, keep_callbacks=True))
        title, told = f"phase {phase.number}, {candidate.name}", {"phase": phase.number, "name": candidate.name}
        trainer.add_callback(TrainingWatch(title, told, folder.log(candidate.name), trainer.last_loss))
        optimizer = folder.before.optimizer(_predecessor(phase, candidate, folder) or "") if phase.goes_on else None
        teacher = bench.teacher(args, folder.teacher)
        trainer.masks, trainer.retraining = masks, Retraining(norms, phase.window, optimizer, teacher)
        if teacher is not None and teacher.logits is not None:
            _number_rows_(trainer)
        trainer.train_dataset = rows_of_candidate(
            trainer.train_dataset,
            args.candidate_data,
            position,
            len(phase.candidates),
            seed=bench.args.seed + SEED_STRIDE * phase.number,
        )
        if args.tail_average is not None and not phase.keeps_optimizers:  # Those that go on do so from their last step.
            trainer.average_tail(TailAverage(args.tail_average))
        for callback in self._callbacks:
            trainer.add_callback(callback)
        if phase.events:
            prune = _pruning_of(bench, phase)
            trainer.prune_while_training(GradualPruning(phase.events, phase.feedback, prune))
        return trainer

    def _keep(self, trainer: Any, phase: Phase, folder: Path, record: dict[str, Any]) -> None:
        """Write and score a candidate that has been trained; what is known of it goes into its record."""
        bench = self._bench
        if not all_finite(trainer.model):
            raise Diverged("its weights are not finite")
        trainer.end_pruning(phase.keeps_dense)
        if not phase.keeps_dense:
            bench.recalibrate_(trainer.model)
            record["mask_fingerprint"] = trainer.masks.fingerprint()
        remove_unfinished(folder)
        trainer.save_named(folder)
        record |= vars(bench.score(bench.load(folder, phase)))
        record["score"] = record["metrics"][bench.metric]
        if not math.isfinite(record["score"]):
            raise Diverged(f"its {bench.metric} is {record['score']}")

    def _write(self, phase: Phase, record: dict[str, Any], folder: PhaseFolder, start: float) -> None:
        model, path = folder.candidate(record["name"]), folder.candidate_record(record["name"])
        if record["failure"] is not None:
            remove_weights(model)
        optimizer = folder.optimizer(record["name"])
        files = [*model_files(model), *([optimizer] if phase.keeps_optimizers and optimizer.is_file() else [])]
        where = {"started": start, "process": self._bench.args.processes.rank}
        record = write_record(path, record | {"seconds": time.time() - start} | where, files)
        remove_checkpoints(model)
        level = logging.INFO if record["failure"] is None else logging.WARNING
        say(candidate_line(phase.number, record, self._bench.metric), level)
        tell("training", **candidate_facts(phase.number, record))
        there = [path for c in phase.candidates if (path := folder.candidate_record(c.name)).is_file()]
        check_enough(phase, [read_record(path) for path in there], self._bench.args.min_candidates, folder)


def check_enough(phase: Phase, records: Sequence[dict[str, Any]], min_candidates: int, folder: PhaseFolder) -> None:
    """Raise as soon as too few candidates can be left: the others need not be trained to the end for that."""
    failed = [record for record in records if record["failure"] is not None]
    min_candidates = min(min_candidates, len(phase.candidates))  # A trunk has one.
    if len(phase.candidates) - len(failed) >= min_candidates:
        return
    names = {reason: [r["name"] for r in failed if r["failure"] == reason] for reason in (r["failure"] for r in failed)}
    reasons = "; ".join(f"{', '.join(whose)}: {reason}" for reason, whose in names.items())
    # Of those that diverged there is no traceback: nothing was raised but by the check.
    diverged = any("traceback" not in record for record in failed)
    remedy = (
        "Take a lower learning_rate or max_grad_norm and another output_dir."
        if diverged
        else f"Tracebacks are in {folder.root}/candidate-*.json. Mend the cause and resume."
    )
    raise RuntimeError(
        f"Expected at least min_candidates={min_candidates} of the {len(phase.candidates)} candidates of phase "
        f"{phase.number} to succeed, but {len(failed)} failed ({reasons}). {remedy}"
    )


def _number_rows_(trainer: Any) -> None:
    """Let batches say which rows they hold."""
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns += [ROW]  # Or Trainer would drop it.
    trainer.train_dataset, trainer.data_collator = (
        NumberedRows(trainer.train_dataset),
        carry_rows(trainer.data_collator),
    )


def _predecessor(phase: Phase, candidate: Candidate, folder: PhaseFolder) -> str | None:
    """Whose weights or optimizer of the phase before a candidate goes on with; its own name where none; `None`: it failed."""
    if not phase.own_parents and not phase.goes_on:
        return candidate.name
    survivors = folder.before.survivors()
    if len(folder.before.candidate_records()) == 1:
        return survivors[0]
    return candidate.name if candidate.name in survivors else None


def _train_biases_and_norms_(model: torch.nn.Module) -> None:
    """Freeze all parameters but vectors: biases, and scales and shifts of norms."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.dim() < 2)


def _pruning_of(bench: Bench, phase: Phase) -> Callable[..., Masks]:
    return lambda model, sparsity, within: bench.prune_(model, sparsity, within, phase.number)
