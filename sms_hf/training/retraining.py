"""A phase's parent, and one candidate after the other."""

import gc
import math
import time
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import get_last_checkpoint

from ..soup.checkpoint import MASKS
from ..sparsity.masks import Masks
from ..sparsity.patterns import nm_skipped
from ..sparsity.pruning import find_weights
from ..sparsity.schedules import allr_scale
from .candidates import Candidate, Phase
from .evaluation import all_finite
from .gradual import GradualPruning
from .learning_rate import original_epochs, retrain_factor, shift_
from .merging import MergingMixin
from .progress import candidate_line
from .records import Norms, parent_record, weight_norm
from .run_directory import RunDirectory, read_json, remove_checkpoints, write_json
from .spawning import candidate_args, spawn
from .weights import load_weights_


class RetrainingMixin(MergingMixin):
    """Prunes what a phase starts from, and retrains its candidates, each by a fresh trainer of the user's class."""

    _is_candidate = False
    # What a candidate's learning rate depends on besides its arguments.
    _window = (0.0, 1.0)
    _norms: Norms | None = None

    def _prune_parent(self, phase: Phase, run: RunDirectory) -> dict[str, Any]:
        """Prune what the previous phase left, and write it: all candidates of the phase start from these files."""
        if run.parent_record(phase.number).is_file():
            return read_json(run.parent_record(phase.number))
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
        record = parent_record(model, masks, norms, skipped)
        write_json(run.parent_record(phase.number), record)
        return record

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
        """Names of the candidates of a phase that did not diverge."""
        records = [read_json(path) for path in run.candidate_records(number)]
        return [record["name"] for record in records if not record["diverged"]]

    def _start_candidate_(
        self, model: torch.nn.Module, phase: Phase, candidate: Candidate, run: RunDirectory
    ) -> tuple[Masks, Norms]:
        """Put the weights in place that a candidate starts from."""
        if phase.own_parents:
            return self._prune_own_(model, phase, candidate.name, run)
        load_weights_(model, run.parent(phase.number))
        norms = Norms(**read_json(run.parent_record(phase.number))["norms"])
        if phase.keeps_dense:
            return self._all_kept(model), norms
        return Masks.load(run.parent(phase.number) / MASKS), norms

    def _retrain(self, phase: Phase, candidate: Candidate, run: RunDirectory) -> None:
        """Retrain one candidate, write and score it; its record last."""
        folder, start, metric = run.candidate(phase.number, candidate.name), time.time(), self.args.selection_metric[0]
        record: dict[str, Any] = {"name": candidate.name, "overrides": candidate.overrides, "steps": 0, "epochs": 0.0}
        record |= {"train_loss": None, "diverged": None}
        if phase.own_parents and candidate.name not in self._left(phase.number - 1, run):
            record["diverged"] = "it diverged in the phase before"
        else:
            trainer = self._train_candidate(phase, candidate, run, record)
            if record["diverged"] is None:
                if not phase.keeps_dense:
                    self._recalibrate_(trainer.model)
                trainer._save_named(folder)
                del trainer
                gc.collect()
                record["metrics"] = self._evaluate_folder(folder, phase)
                record["score"] = record["metrics"][metric]
                if not math.isfinite(record["score"]):
                    record["diverged"] = f"its {metric} is {record['score']}"
        record["seconds"] = time.time() - start
        write_json(run.candidate_record(phase.number, candidate.name), record)
        remove_checkpoints(folder)
        print(candidate_line(phase.number, record, metric), flush=True)

    def _train_candidate(self, phase: Phase, candidate: Candidate, run: RunDirectory, record: dict[str, Any]) -> Any:
        """A fresh trainer of the user's class, after its training."""
        folder, model = run.candidate(phase.number, candidate.name), self._copy()
        masks, norms = self._start_candidate_(model, phase, candidate, run)
        trainer = spawn(self, model, candidate_args(self.args, phase, candidate, folder), keep_callbacks=True)
        trainer.masks, trainer._is_candidate = masks, True
        trainer._window, trainer._norms = phase.window, norms
        if phase.events:
            trainer.prune_while_training(
                GradualPruning(
                    phase.events, phase.feedback, lambda m, s, within: self._prune_(m, s, within, phase.number)
                )
            )
        if trainer.args.max_steps > 0 or trainer.args.num_train_epochs > 0:
            output = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
            record |= {"steps": output.global_step, "epochs": trainer.state.epoch, "train_loss": output.training_loss}
        if not all_finite(trainer.model):
            record["diverged"] = "the weights are not finite"
        else:
            trainer.end_pruning(phase.keeps_dense)
        return trainer

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
        return max(rows / (self.args.train_batch_size * self.args.gradient_accumulation_steps), 1.0)

    def _allr_scale(self, epochs: float) -> float:
        if self.args.retrain_schedule != "allr" or self._norms is None:
            return 1.0
        norms = self._norms
        return allr_scale(norms.before, norms.after, norms.fraction, epochs, original_epochs(self.args))

    def _num_examples(self) -> dict[str, int | None]:
        data = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        return {name: len(d) if hasattr(d, "__len__") else None for name, d in data.items()}
