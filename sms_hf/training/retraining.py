"""A phase's parent, and one candidate after the other."""

import gc
import math
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..files.folder import MASKS
from ..sparsity.masks import Masks, check_fingerprint
from ..sparsity.patterns import nm_skipped
from ..sparsity.pruning import find_weights
from ..sparsity.schedules import allr_scale
from .adapters import add_adapters, merge_lora
from .candidates import Candidate, Phase
from .evaluation import all_finite
from .failures import Diverged, ends_the_run, reason
from .gradual import GradualPruning
from .groups import agree, anyone, make_group, plain_model, training_group
from .learning_rate import original_epochs, retrain_factor, shift_
from .merging import MergingMixin
from .progress import candidate_line
from .records import Norms, parent_record, weight_norm, without_timings
from .run_directory import (
    ORIGIN,
    RunDirectory,
    last_checkpoint,
    model_files,
    read_record,
    remove_checkpoints,
    remove_unfinished,
    remove_weights,
    write_record,
)
from .say import say
from .spawning import candidate_args, spawn
from .stopping import leave_if_wished, stop_wished
from .tracking import own_run
from .weights import load_weights_


class RetrainingMixin(MergingMixin):
    """Prunes what a phase starts from, and retrains its candidates, each by a fresh trainer of the user's class."""

    # What a candidate's learning rate depends on besides its arguments.
    _window = (0.0, 1.0)
    _norms: Norms | None = None
    _estimate: Any = None
    # Of LoRA: what candidates are given on top of the parent, and merged into it at their end.
    _adapters: Any = None
    _origin = ""

    def _prune_parent(self, phase: Phase, run: RunDirectory, is_needed: bool) -> dict[str, Any]:
        """
        Prune what the previous phase left, and write it: all candidates of the phase start from these files.

        Where no candidate is to start any more, the record is enough.
        """
        there = run.whole(run.parent_record(phase.number), files=is_needed)
        if there is not None:
            return there
        model = self._copy()
        if phase.own_parents:
            # Nothing to write: every candidate prunes itself. The first that is left tells the counts, which are the same.
            masks, norms = self._prune_own_(model, phase, self._left(phase.number - 1, run)[0], run)
        else:
            within = None
            if phase.number > 1:
                load_weights_(model, run.soup(phase.number - 1))
                path = run.soup(phase.number - 1) / MASKS
                within = Masks.load(path) if path.is_file() else None
            if phase.keeps_dense:
                self._save_model(model, None, run.parent(phase.number))
            masks, norms = self._prune_from_(model, phase, within)
            if not phase.keeps_dense:
                self._save_model(model, masks, run.parent(phase.number))
        skipped = nm_skipped(model, self.args.pruning_pattern, self.args.target_modules, self.args.exclude_modules)
        record = parent_record(model, masks, norms, skipped) | {ORIGIN: self._origin}
        return write_record(run.parent_record(phase.number), record, model_files(run.parent(phase.number)))

    def _prune_from_(self, model: torch.nn.Module, phase: Phase, within: Masks | None) -> tuple[Masks, Norms]:
        """Prune a model to the sparsity of the phase, in place; the norms around it are what ALLR needs."""
        before, alive = weight_norm(model), within.num_kept if within is not None else None
        dense = phase.sparsity == 0
        masks = self._all_kept(model) if dense else self._prune_(model, phase.sparsity, within, phase.number)
        fraction = 1.0 - masks.num_kept / (masks.num_weights if alive is None else alive)
        return masks, Norms(before, weight_norm(model), fraction)

    def _all_kept(self, model: torch.nn.Module) -> Masks:
        """Masks of the parameters that pruning will cover, before it has removed anything."""
        pattern, targets, excluded = self.args.pruning_pattern, self.args.target_modules, self.args.exclude_modules
        weights = find_weights(model, pattern, targets, excluded)
        return Masks({name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()})

    def _prune_own_(self, model: torch.nn.Module, phase: Phase, name: str, run: RunDirectory) -> tuple[Masks, Norms]:
        """Load a candidate of the phase before, and prune it on its own."""
        folder = run.candidate(phase.number - 1, name)
        load_weights_(model, folder)
        return self._prune_from_(model, phase, Masks.load(folder / MASKS))

    def _left(self, number: int, run: RunDirectory) -> list[str]:
        """Names of the candidates of a phase that did not fail."""
        records = [read_record(path) for path in run.candidate_records(number)]
        return [record["name"] for record in records if record["failure"] is None]

    def _start_candidate_(
        self, model: torch.nn.Module, phase: Phase, candidate: Candidate, run: RunDirectory
    ) -> tuple[Masks, Norms]:
        """Put the weights in place that a candidate starts from."""
        if phase.own_parents:
            return self._prune_own_(model, phase, candidate.name, run)
        load_weights_(model, run.parent(phase.number))
        parent = read_record(run.parent_record(phase.number))
        norms = Norms(**parent["norms"])
        if phase.keeps_dense:
            return self._all_kept(model), norms
        masks = Masks.load(run.parent(phase.number) / MASKS)
        check_fingerprint(masks, parent["mask_fingerprint"], f"{candidate.name} of phase {phase.number}")
        return masks, norms

    def _retrain(self, phase: Phase, candidate: Candidate, run: RunDirectory, scope: str) -> None:
        """Retrain one candidate, write and score it; its record last, even if it failed."""
        start, group = time.time(), make_group(self.args.processes, self.args.candidate_processes)
        leave_if_wished()
        self.args.processes.beat(f"at {candidate.name} of phase {phase.number}")
        record: dict[str, Any] = {"name": candidate.name, "overrides": candidate.overrides, "steps": 0, "epochs": 0.0}
        record |= {"total_flos": 0.0, "train_loss": None, "log": [], "failure": None}
        if phase.own_parents and candidate.name not in self._left(phase.number - 1, run):
            record["failure"] = "it failed in the phase before"
        else:
            model = self._copy()
            start_from = self._start_candidate_(model, phase, candidate, run)
            try:
                name = f"{scope}/{candidate.name}"
                timeout = timedelta(seconds=self.args.ddp_timeout)
                with training_group(group, name, self.args.device.type == "cpu", timeout):
                    trainer = self._train_candidate(model, start_from, phase, candidate, run, record)
                    trained = plain_model(trainer.model, self._copy, keep=group.is_leader)
                if trained is not None:
                    trainer.model = trainer.model_wrapped = trained
                    self._keep_candidate(trainer, phase, run.candidate(phase.number, candidate.name), record)
            except Exception as error:
                if ends_the_run(error):
                    raise
                record["failure"] = reason(error, self.args)
                if not isinstance(error, Diverged):
                    record["traceback"] = traceback.format_exc()
                    traceback.print_exc()
                    if group.size > 1:  # The others of the group wait for this process, in vain.
                        self._record_candidate(phase, record, run, start)
                        raise
        trainer = trained = model = None
        gc.collect()
        torch.cuda.empty_cache()
        if group.is_leader:
            self._record_candidate(phase, record, run, start)

    def _record_candidate(self, phase: Phase, record: dict[str, Any], run: RunDirectory, start: float) -> None:
        folder, path = run.candidate(phase.number, record["name"]), run.candidate_record(phase.number, record["name"])
        if record["failure"] is not None:
            remove_weights(folder)
        write_record(path, record | {"seconds": time.time() - start}, model_files(folder))
        remove_checkpoints(folder)
        say(candidate_line(phase.number, read_record(path), self.args.selection_metric[0]))
        there = [path for c in phase.candidates if (path := run.candidate_record(phase.number, c.name)).is_file()]
        self._check_enough(phase, [read_record(path) for path in there])

    def _keep_candidate(self, trainer: Any, phase: Phase, folder: Path, record: dict[str, Any]) -> None:
        """Write and score a candidate that has been trained; what is known of it goes into its record."""
        metric = self.args.selection_metric[0]
        if not all_finite(trainer.model):
            raise Diverged("its weights are not finite")
        trainer.end_pruning(phase.keeps_dense)
        if not phase.keeps_dense:
            self._recalibrate_(trainer.model)
            record["mask_fingerprint"] = trainer.masks.fingerprint()
        remove_unfinished(folder)
        trainer._save_named(folder)
        record["metrics"] = self._evaluate_folder(folder, phase)
        record["score"] = record["metrics"][metric]
        if not math.isfinite(record["score"]):
            raise Diverged(f"its {metric} is {record['score']}")

    def _check_enough(self, phase: Phase, records: Sequence[dict[str, Any]]) -> None:
        """Raise as soon as too few candidates can be left: the others need not be trained to the end for that."""
        failed = [record for record in records if record["failure"] is not None]
        if len(phase.candidates) - len(failed) < self.args.min_candidates:
            names = {
                reason: [r["name"] for r in failed if r["failure"] == reason]
                for reason in (r["failure"] for r in failed)
            }
            reasons = "; ".join(f"{', '.join(whose)}: {reason}" for reason, whose in names.items())
            # Of those that diverged there is no traceback: nothing was raised but by the check.
            diverged = any("traceback" not in record for record in failed)
            remedy = (
                "Take a lower learning_rate or max_grad_norm and another output_dir."
                if diverged
                else f"Tracebacks are in {self._run.phase(phase.number)}/candidate-*.json. Mend the cause and resume."
            )
            raise RuntimeError(
                f"Expected at least min_candidates={self.args.min_candidates} of the {len(phase.candidates)} candidates of phase "
                f"{phase.number} to succeed, but {len(failed)} failed ({reasons}). {remedy}"
            )

    def _train_candidate(
        self,
        model: torch.nn.Module,
        start_from: tuple[Masks, Norms],
        phase: Phase,
        candidate: Candidate,
        run: RunDirectory,
        record: dict[str, Any],
    ) -> Any:
        """A fresh trainer of the user's class, after its training."""
        folder, (masks, norms) = run.candidate(phase.number, candidate.name), start_from
        args = candidate_args(self.args, phase, candidate, folder)
        if self._adapters is not None:
            model = add_adapters(model, self._adapters, masks, args.seed)
        trainer = spawn(self, model, args, keep_callbacks=True)
        trainer.masks, trainer._is_candidate = masks, True
        if self._estimate is not None:
            trainer.add_callback(self._estimate)
        trainer._window, trainer._norms = phase.window, norms
        if phase.events:
            trainer.prune_while_training(
                GradualPruning(
                    phase.events, phase.feedback, lambda m, s, within: self._prune_(m, s, within, phase.number)
                )
            )
        if trainer.args.max_steps > 0 or trainer.args.num_train_epochs > 0:
            # Without the optimizer's state a checkpoint would lead to another model.
            checkpoint = agree(lambda: None if trainer.args.save_only_model else last_checkpoint(folder))
            with own_run(self.args.run_name or run.root.absolute().name):
                output = trainer.train(resume_from_checkpoint=checkpoint)
            state = trainer.state
            record |= {"steps": output.global_step, "epochs": state.epoch, "total_flos": state.total_flos}
            record |= {"train_loss": trainer.mean_loss, "log": [without_timings(entry) for entry in state.log_history]}
        if self._adapters is not None:
            trainer.model = trainer.model_wrapped = merge_lora(trainer.model, masks)
        return trainer

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Scaled losses of fp16 overflow now and then; weights do not recover.
        if self._is_candidate and anyone(not torch.isfinite(loss)):
            self._check_finite()
        return loss

    def _check_finite(self) -> None:
        if anyone(not all_finite(self.model)):
            raise Diverged(f"its weights are not finite after step {self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Of sharded weights only the leader is here, with all that was gathered.
        if self._is_candidate and state_dict is None:
            self._check_finite()
        super()._save(output_dir, state_dict)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        # Where Trainer itself saves: what it had to do after this step is done, and is part of its state.
        if self._is_candidate and anyone(stop_wished()):
            self._save_checkpoint(self.model, trial=None)
            say(f"{Path(str(self.args.output_dir)).name}: saved at step {self.state.global_step}")
            leave_if_wished(True)

    # ---- Learning rate -----------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if not self._is_candidate or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        start, stop = self._window
        whole = round(num_training_steps / (stop - start))
        if self.args.retrain_schedule is None:
            scheduler = super().create_scheduler(whole, optimizer)
        else:
            per_epoch = self._steps_per_epoch(num_training_steps)
            scale = self._allr_scale(num_training_steps / per_epoch)
            factor = retrain_factor(self.args, whole, per_epoch, scale)
            scheduler = self.lr_scheduler = LambdaLR(cast("Any", optimizer or self.optimizer), factor)
            self._created_lr_scheduler = True
        if start > 0:
            shift_(scheduler, round(start * whole))
        return scheduler

    def _steps_per_epoch(self, num_training_steps: int) -> float:
        if self.args.max_steps <= 0:
            return num_training_steps / self.args.num_train_epochs
        rows = self._num_examples()["train_dataset"]
        if rows is None:
            raise ValueError(
                f"retrain_schedule={self.args.retrain_schedule!r} needs a train_dataset whose length is known. Choose 'llr', or "
                "leave retrain_schedule out."
            )
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return max(rows / batch, 1.0)

    def _allr_scale(self, epochs: float) -> float:
        if self.args.retrain_schedule != "allr" or self._norms is None:
            return 1.0
        norms = self._norms
        return allr_scale(norms.before, norms.after, norms.fraction, epochs, original_epochs(self.args))

    def _num_examples(self) -> dict[str, int | None]:
        data = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        return {name: len(d) if hasattr(d, "__len__") else None for name, d in data.items()}
