"""The user's trainer: the phases, told top to bottom."""

import time
from pathlib import Path
from typing import Any, cast

from transformers import Seq2SeqTrainer
from transformers.trainer_utils import TrainOutput

from ..soup.checkpoint import MASKS
from ..sparsity.masks import Masks
from ..sparsity.prunable import find_prunable
from .arguments import SparseSoupArguments
from .candidates import Phase
from .progress import dense_line, parent_line, soup_lines
from .publishing import PublishingMixin
from .records import phase_record, run_settings, train_output
from .run_directory import RunDirectory, read_json, remove_weights, write_json
from .weights import forget_accelerate_, load_weights_


class SparseSoupMixin(PublishingMixin):
    """
    Turns a `Trainer` into one that makes sparse model soups: `class SoupSFT(SparseSoupMixin, SFTTrainer)`.

    `train()` runs the phases of Sparse Model Soups (Zimmer, Spiegel, Pokutta, ICLR 2024, Algorithm 1): prune, retrain
    copies that share the mask, average them, repeat. Every copy is retrained by a fresh trainer of the user's own class,
    on whichever process is free. Afterwards the trainer holds the final soup: `evaluate`, `predict`, `save_model` and
    `push_to_hub` speak of it.

    Attributes:
        masks ([`Masks`] or `None`): Masks of the model that the trainer holds.
        report (`dict` or `None`): After `train()`, what `report.json` holds.
    """

    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args, **kwargs):
        # Remember the outermost call, whatever a subclass adds to the signature: candidates are built by the same call.
        trainer = super().__new__(cls)
        trainer._call = (args, kwargs)
        return trainer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, SparseSoupArguments):
            raise ValueError(
                f"args must be SparseSoupTrainingArguments, got {type(self.args).__name__}. For another Trainer's arguments "
                "write `class MyArguments(SparseSoupArguments, TheirArguments)`."
            )
        self.report: dict[str, Any] | None = None

    # ---- The phases --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None) -> TrainOutput:
        """
        Make the soup.

        Args:
            resume_from_checkpoint (`bool`, *optional*): `True` goes on with the run in `args.output_dir`, or starts one.

        Returns:
            `TrainOutput`: Optimizer steps of all candidates together, their mean training loss, and the metrics of every
            phase (`phase_1_soup_<metric>`, ...).

        Raises:
            ValueError: For settings or data that make no sense, or an `output_dir` that holds another run.
            RuntimeError: If no candidate of a phase is left, or another process failed.
        """
        if self._is_candidate:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        start, processes, scope = time.time(), self.args.processes, self._scope("train")
        try:
            self._check_inputs(resume_from_checkpoint, trial)
            self.report = self._run_phases(self._run, resume_from_checkpoint is True, scope)
            if self.args.push_to_hub:
                self.push_to_hub()
        except BaseException as error:
            processes.fail(error)
            raise
        return train_output(self.report, time.time() - start)

    def _run_phases(self, run: RunDirectory, resume: bool, scope: str) -> dict[str, Any]:
        processes, plan, metric = self.args.processes, self.args.make_plan(), self.args.selection_metric[0]
        settings = run_settings(self.args, plan, self.model, self._num_examples())
        processes.on_main(f"{scope}/open", lambda: run.open(settings, resume))
        self._release_model_()
        dense = processes.on_main(f"{scope}/dense", lambda: self._score_dense(run))
        self._say(dense_line(dense, metric))
        phases = [self._run_phase(phase, len(plan), run, f"{scope}/phase-{phase.number}") for phase in plan]
        self._hold(run.soup(plan[-1].number))
        report = {"metric": metric, "settings": settings, "dense": dense, "phases": phases}
        processes.on_main(f"{scope}/save", lambda: self._save_final(run, report))
        return report

    def _run_phase(self, phase: Phase, num_phases: int, run: RunDirectory, scope: str) -> dict[str, Any]:
        processes, start = self.args.processes, time.time()
        if processes.on_main(f"{scope}/finished", run.phase_record(phase.number).is_file):
            return read_json(run.phase_record(phase.number))
        parent = processes.on_main(f"{scope}/parent", lambda: self._prune_parent(phase, run))
        self._say(parent_line(phase, num_phases, parent))
        pending = processes.on_main(f"{scope}/pending", lambda: _pending(phase, run))
        processes.fan_out(f"{scope}/candidates", pending, lambda i: self._retrain(phase, phase.candidates[i], run))
        return processes.on_main(f"{scope}/merged", lambda: self._finish_phase(phase, parent, run, start))

    def _score_dense(self, run: RunDirectory) -> dict[str, float]:
        """Score the model before pruning: the table's first row, and a check of the metric before hours of training."""
        if not run.dense_record.is_file():
            write_json(run.dense_record, self._evaluate_copy(self._copy()))
        return read_json(run.dense_record)

    def _finish_phase(self, phase: Phase, parent: dict[str, Any], run: RunDirectory, start: float) -> dict[str, Any]:
        """Merge the candidates, if the phase says so; the record of the phase last."""
        records = [read_json(run.candidate_record(phase.number, c.name)) for c in phase.candidates]
        if all(record["diverged"] for record in records):
            reasons = "; ".join(f"{record['name']}: {record['diverged']}" for record in records)
            raise RuntimeError(
                f"No candidate of phase {phase.number} is left ({reasons}). Lower learning_rate or max_grad_norm and start "
                "again in another output_dir."
            )
        metric, greater = self.args.selection_metric
        soup, diagnostics = (None, {}) if phase.merge == "none" else self._merge(phase, records, run)
        record = phase_record(phase, parent, records, soup, diagnostics, greater)
        write_json(run.phase_record(phase.number), record | {"seconds": time.time() - start})
        if soup is not None and not self.args.keep_candidates:
            self._remove_candidates(phase.number, run)
        for line in soup_lines(record, metric):
            self._say(line)
        return read_json(run.phase_record(phase.number))

    def _remove_candidates(self, number: int, run: RunDirectory) -> None:
        """Remove what only this phase needed, and the phases before it that waited for it."""
        for phase in self.args.make_plan()[:number]:
            for folder in (run.parent(phase.number), *(run.candidate(phase.number, c.name) for c in phase.candidates)):
                remove_weights(folder)

    def _hold(self, folder: Path) -> None:
        """Make this trainer the trainer of the model in a folder."""
        load_weights_(self.model, folder)
        self.masks = Masks.load(folder / MASKS)
        self._move_model_to_device(self.model, self.args.device)

    def _release_model_(self) -> None:
        """Make `self.model` plain again and move it off the accelerator: from here on it only serves to be copied."""
        forget_accelerate_(self.model)
        self.accelerator.free_memory()
        self.model_wrapped = self.model.to("cpu")

    # ---- Checks ------------------------------------------------------------------------------------------------------

    def _check_inputs(self, resume_from_checkpoint, trial) -> None:
        if trial is not None:
            raise ValueError(
                "Expected no hyperparameter search trial. Use `vary` to train candidates with other settings."
            )
        if resume_from_checkpoint not in (None, True, False):
            raise ValueError(
                f"resume_from_checkpoint must be True or False, got {resume_from_checkpoint!r}. A run is resumed from its "
                "output_dir, whatever it had finished."
            )
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "Expected no `optimizers`: one optimizer cannot serve several candidates. Pass "
                "optimizer_cls_and_kwargs=(cls, {...}), or set optim, learning_rate and lr_scheduler_type in args."
            )
        if self.optimizer_cls_and_kwargs is not None and "learning_rate" in cast("dict", self.args.vary or {}):
            raise ValueError(
                "Expected `vary` without learning_rate, because optimizer_cls_and_kwargs sets the learning rate itself. "
                "Use optim and learning_rate in args instead."
            )
        for name, count in self._num_examples().items():
            if count == 0:
                raise ValueError(f"{name} must hold at least one example, got an empty one. Check files and filters.")
        if self.train_dataset is None or self.eval_dataset is None:
            raise ValueError(
                "Expected train_dataset and eval_dataset: candidates are trained on one, scored on the other."
            )
        find_prunable(self.model, self.args.target_modules, self.args.exclude_modules)


def _pending(phase: Phase, run: RunDirectory) -> list[int]:
    """Positions of the candidates that are not done yet."""
    names = [candidate.name for candidate in phase.candidates]
    return [i for i, name in enumerate(names) if not run.candidate_record(phase.number, name).is_file()]


class SparseSoupTrainer(SparseSoupMixin, Seq2SeqTrainer):
    """
    Trainer for sparse model soups of any Hugging Face model; Trainer's own signature and attributes.

    A `Seq2SeqTrainer`, so that `predict_with_generate` works for translation; for all other models it is a `Trainer`.
    What it does: [`SparseSoupMixin`].
    """

    def __init__(self, *args, optimizer_cls_and_kwargs=None, **kwargs):
        super().__init__(*args, **kwargs)
        # Trainer takes this by name, Seq2SeqTrainer forgets to.
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
