"""The user's trainer: the phases, told top to bottom."""

import copy
import gc
import math
import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PrinterCallback, ProgressCallback, Seq2SeqTrainer
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ..soup.averaging import average_checkpoints
from ..soup.checkpoint import MASKS
from ..soup.recipes import SOUP_METHODS
from ..sparsity.masks import Masks
from ..sparsity.prunable import find_prunable
from ..sparsity.pruning import prune
from .arguments import SparseSoupArguments
from .candidates import Candidate, Phase
from .evaluation import all_finite
from .masked_trainer import MaskedTrainerMixin
from .progress import candidate_line, dense_line, parent_line, soup_line
from .records import phase_record, run_settings, train_output
from .run_directory import RunDirectory, read_json, remove_checkpoints, remove_weights, write_json
from .spawning import candidate_args, silent_args, spawn
from .weights import forget_accelerate_, load_weights_, no_progress_bars

TIMINGS = ("_runtime", "_per_second", "_preparation_time")


class SparseSoupMixin(MaskedTrainerMixin):
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

    args: SparseSoupArguments
    model: torch.nn.Module
    _call: tuple[tuple[Any, ...], dict[str, Any]]
    _is_candidate = False

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
        start, processes = time.time(), self.args.processes
        scope = f"train-{processes.take(f'train-{processes.rank}')}"
        try:
            self._check_inputs(resume_from_checkpoint, trial)
            self.report = self._run_phases(
                RunDirectory(str(self.args.output_dir)), resume_from_checkpoint is True, scope
            )
        except BaseException as error:
            processes.fail(error)
            raise
        return train_output(self.report, time.time() - start)

    def evaluate_run(self, dataset, dense: torch.nn.Module | None = None) -> dict[str, float]:
        """
        Score every model that the run left on disk on other data: the test set, once, after all choices are made.

        Args:
            dataset (`Dataset`): As `eval_dataset`.
            dense (`nn.Module`, *optional*): The model before pruning, to be scored along.

        Returns:
            `dict[str, float]`: `"dense"`, `"phase-1/candidate-1"` (with `keep_candidates`), `"phase-1/soup"`, ... -> the
            value of `metric_for_best_model`.
        """
        run, processes = RunDirectory(str(self.args.output_dir)), self.args.processes
        metric = self.args.selection_metric[0]

        def score() -> dict[str, float]:
            scores = {} if dense is None else {"dense": self._evaluate_copy(dense, dataset)[metric]}
            for phase in self.args.make_plan():
                for name in (*(candidate.name for candidate in phase.candidates), "soup"):
                    folder = run.phase(phase.number) / name
                    if (folder / MASKS).is_file():
                        scores[f"phase-{phase.number}/{name}"] = self._evaluate_folder(folder, dataset)[metric]
            return scores

        return processes.on_main(f"evaluate-run-{processes.take(f'evaluate-run-{processes.rank}')}", score)

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
        self._say(parent_line(phase.number, num_phases, parent))
        pending = processes.on_main(f"{scope}/pending", lambda: _pending(phase, run))
        processes.fan_out(f"{scope}/candidates", pending, lambda i: self._retrain(phase, phase.candidates[i], run))
        return processes.on_main(f"{scope}/soup", lambda: self._make_soup(phase, parent, run, start))

    def _score_dense(self, run: RunDirectory) -> dict[str, float]:
        """Score the model before pruning: the table's first row, and a check of the metric before hours of training."""
        if not run.dense_record.is_file():
            write_json(run.dense_record, self._evaluate_copy(self._copy()))
        return read_json(run.dense_record)

    def _prune_parent(self, phase: Phase, run: RunDirectory) -> dict[str, Any]:
        """Prune what the previous phase left, and write it: all candidates of the phase start from these files."""
        if run.parent_record(phase.number).is_file():
            return read_json(run.parent_record(phase.number))
        model, within = self._copy(), None
        if phase.number > 1:
            load_weights_(model, run.soup(phase.number - 1))
            within = Masks.load(run.soup(phase.number - 1) / MASKS)
        masks = prune(
            model,
            phase.sparsity,
            scope=self.args.pruning_scope,
            criterion=self.args.pruning_criterion,
            target_modules=self.args.target_modules,
            exclude_modules=self.args.exclude_modules,
            max_sparsity_per_layer=self.args.max_sparsity_per_layer,
            within=within,
            seed=self.args.seed + phase.number,
        )
        trainer = spawn(self, model, silent_args(self.args))
        trainer.masks = masks
        trainer._save_named(run.parent(phase.number))
        record = {
            "sparsity": masks.sparsity(),
            "model_sparsity": (masks.num_weights - masks.num_kept) / sum(p.numel() for p in model.parameters()),
            "num_kept": masks.num_kept,
            "num_weights": masks.num_weights,
            "mask_fingerprint": masks.fingerprint(),
            "sparsity_per_tensor": masks.sparsity_per_tensor(),
        }
        write_json(run.parent_record(phase.number), record)
        return record

    def _retrain(self, phase: Phase, candidate: Candidate, run: RunDirectory) -> None:
        """Retrain one candidate from the parent's files, write and score it; its record last."""
        folder, start = run.candidate(phase.number, candidate.name), time.time()
        model = self._copy()
        load_weights_(model, run.parent(phase.number))
        trainer = spawn(self, model, candidate_args(self.args, phase, candidate, folder), keep_callbacks=True)
        trainer.masks = Masks.load(run.parent(phase.number) / MASKS)
        trainer._is_candidate = True
        output = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
        record: dict[str, Any] = {
            "name": candidate.name,
            "overrides": candidate.overrides,
            "steps": output.global_step,
            "train_loss": output.training_loss,
            "diverged": None if all_finite(trainer.model) else "the weights are not finite",
        }
        if record["diverged"] is None:
            trainer._save_named(folder)
            del trainer, model
            gc.collect()
            record["metrics"] = self._evaluate_folder(folder)
            record["score"] = record["metrics"][self.args.selection_metric[0]]
            if not math.isfinite(record["score"]):
                record["diverged"] = f"its {self.args.selection_metric[0]} is {record['score']}"
        record["seconds"] = time.time() - start
        write_json(run.candidate_record(phase.number, candidate.name), record)
        remove_checkpoints(folder)
        print(candidate_line(phase.number, record, self.args.selection_metric[0]), flush=True)

    def _make_soup(self, phase: Phase, parent: dict[str, Any], run: RunDirectory, start: float) -> dict[str, Any]:
        """Choose ingredients, average them, verify and score the soup; the record of the phase last."""
        records = [read_json(run.candidate_record(phase.number, c.name)) for c in phase.candidates]
        scores = {record["name"]: record["score"] for record in records if not record["diverged"]}
        if not scores:
            reasons = "; ".join(f"{record['name']}: {record['diverged']}" for record in records)
            raise RuntimeError(
                f"No candidate of phase {phase.number} is left ({reasons}). Lower learning_rate or max_grad_norm and start "
                "again in another output_dir."
            )
        metric, greater = self.args.selection_metric

        def average(names: list[str], output: Path) -> Path:
            return average_checkpoints([run.candidate(phase.number, name) for name in names], output)

        # Equal ingredients give equal bytes, so what was scored once, a candidate or a trial, is not scored again.
        metrics_of: dict[tuple[str, ...], dict[str, float]] = {
            (record["name"],): record["metrics"] for record in records if not record["diverged"]
        }

        def evaluate(names: list[str]) -> float:
            metrics_of[tuple(names)] = self._evaluate_folder(average(names, run.trial(phase.number)))
            return metrics_of[tuple(names)][metric]

        chosen, trials = SOUP_METHODS[self.args.soup_method](scores, evaluate, greater)
        soup = average(chosen, run.soup(phase.number))
        metrics = metrics_of.get(tuple(chosen)) or self._evaluate_folder(soup)
        record = phase_record(phase, parent, records, chosen, trials, metrics, metric, greater)
        write_json(run.phase_record(phase.number), record | {"seconds": time.time() - start})
        shutil.rmtree(run.trial(phase.number), ignore_errors=True)
        if not self.args.keep_candidates:
            for folder in (run.parent(phase.number), *(run.candidate(phase.number, c.name) for c in phase.candidates)):
                remove_weights(folder)
        self._say(soup_line(record, metric))
        return read_json(run.phase_record(phase.number))

    def _hold(self, folder: Path) -> None:
        """Make this trainer the trainer of the model in a folder."""
        load_weights_(self.model, folder)
        self.masks = Masks.load(folder / MASKS)
        self._move_model_to_device(self.model, self.args.device)

    def _save_final(self, run: RunDirectory, report: dict[str, Any]) -> None:
        with no_progress_bars():
            self.save_model(str(run.root), _internal_call=True)
        write_json(run.report, report)

    # ---- Fresh trainers ----------------------------------------------------------------------------------------------

    def _copy(self) -> torch.nn.Module:
        return copy.deepcopy(self.model)

    def _release_model_(self) -> None:
        """Make `self.model` plain again and move it off the accelerator: from here on it only serves to be copied."""
        forget_accelerate_(self.model)
        self.accelerator.free_memory()
        self.model_wrapped = self.model.to("cpu")

    def _evaluate_folder(self, folder: Path, dataset=None) -> dict[str, float]:
        model = self._copy()
        load_weights_(model, folder)
        Masks.load(folder / MASKS).check(model)
        return self._evaluate_copy(model, dataset)

    def _evaluate_copy(self, model: torch.nn.Module, dataset=None) -> dict[str, float]:
        """Metrics on the evaluation set (or another) by the run's own arguments, whatever the candidate's were."""
        trainer = spawn(self, model, silent_args(self.args))
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        results = trainer.evaluate(dataset).items()
        metrics = {k.removeprefix("eval_"): v for k, v in results if k.startswith("eval_") and not k.endswith(TIMINGS)}
        metric = self.args.selection_metric[0]
        if metric not in metrics:
            raise ValueError(
                f"metric_for_best_model must be a metric that the evaluation returns ({', '.join(sorted(metrics))}), "
                f"got {metric!r}. Return it from compute_metrics, or choose another."
            )
        return metrics

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

    def _num_examples(self) -> dict[str, int | None]:
        data = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        return {name: len(d) if hasattr(d, "__len__") else None for name, d in data.items()}

    def _say(self, line: str) -> None:
        if self.args.processes.is_main:
            print(line, flush=True)


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
