"""Scores of models that lie in the folders of a run."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback

from ..files.folder import MASKS
from ..soup.averaging import average_checkpoints
from ..soup.diagnostics import subsets
from ..sparsity.masks import Masks
from ..sparsity.pruning import prune
from .arguments import SparseSoupArguments
from .batch_norm import has_batch_norm, recalibrate_batch_norm_
from .candidates import Phase
from .ensemble import make_ensemble
from .masked_trainer import MaskedTrainerMixin
from .records import without_timings
from .run_directory import DamagedError, RunDirectory, check_files, remove_unfinished
from .spawning import silent_args, spawn
from .stopping import leave_if_wished
from .weights import load_weights_


class ScoringMixin(MaskedTrainerMixin):
    """Scores copies of the trainer's model that hold other weights. Every score is made by a fresh trainer."""

    args: SparseSoupArguments
    model: torch.nn.Module
    _is_candidate = False

    # ---- Signs of life -----------------------------------------------------------------------------------------------

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        self.args.processes.beat()
        return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        self.args.processes.beat()
        if not self._is_candidate:  # Which saves first, after the step.
            leave_if_wished()
        return super().prediction_step(*args, **kwargs)

    # ---- What a user asks after a run --------------------------------------------------------------------------------

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
        run, metric = self._run, self.args.selection_metric[0]

        def score() -> dict[str, float]:
            scores = {} if dense is None else {"dense": self._evaluate_copy(dense, dataset)[metric]}
            for phase in self.args.make_plan():
                for name in (*(candidate.name for candidate in phase.candidates), "soup"):
                    folder = run.phase(phase.number) / name
                    if (folder / MASKS).is_file():
                        scores[f"phase-{phase.number}/{name}"] = self._evaluate_folder(folder, dataset=dataset)[metric]
            return scores

        return self.args.processes.on_main(self._scope("evaluate-run"), score)

    def evaluate_ensemble(self, dataset=None, phase: int | None = None) -> dict[str, float]:
        """
        Score the prediction ensemble of a phase's candidates: a reference that costs as many models at inference.

        Probabilities are averaged, with equal weights; in translation the next token's, at every step of decoding
        (Zimmer et al. 2024; the latter is assumed).

        Args:
            dataset (`Dataset`, *optional*): Default: `eval_dataset`.
            phase (`int`, *optional*): Counts from 1. Default: the last.

        Returns:
            `dict[str, float]`: All metrics.

        Raises:
            ValueError: If the candidates' weights were not kept.
        """
        folders = self._kept_candidates(phase)

        def score() -> dict[str, float]:
            return self._evaluate_copy(make_ensemble([self._load(folder) for folder in folders.values()]), dataset)

        return self.args.processes.on_main(self._scope("evaluate-ensemble"), score)

    def evaluate_subsoups(
        self, dataset=None, sizes: Sequence[int] = (2, 3), phase: int | None = None
    ) -> dict[tuple[str, ...], float]:
        """
        Score the uniform soup of every pair, every triple, ... of a phase's candidates, as in the paper's figure of knobs.

        The soups are spread over the processes.

        Args:
            dataset (`Dataset`, *optional*): Default: `eval_dataset`.
            sizes (`Sequence[int]`, *optional*, defaults to `(2, 3)`): Numbers of ingredients.
            phase (`int`, *optional*): Counts from 1. Default: the last.

        Returns:
            `dict[tuple[str, ...], float]`: Ingredients -> the value of `metric_for_best_model`.
        """
        folders, processes = self._kept_candidates(phase), self.args.processes
        choices, scope = subsets(list(folders), sizes), self._scope("evaluate-subsoups")

        def work(number: int) -> None:
            output = self._run.scratch(number)
            average_checkpoints([folders[name] for name in choices[number]], output)
            self._recalibrate_folder(output)
            processes.publish(f"{scope}/score/{number}", self._evaluate_folder(output, dataset=dataset))
            self._run.remove(output)

        processes.fan_out(scope, range(len(choices)), work)
        metric = self.args.selection_metric[0]
        return {tuple(c): processes.receive(f"{scope}/score/{i}")[metric] for i, c in enumerate(choices)}

    @property
    def _run(self) -> RunDirectory:
        return RunDirectory(str(self.args.output_dir))

    def _scope(self, what: str) -> str:
        """A name that all processes give to this call, and to no other."""
        return f"{what}-{self.args.processes.take(f'{what}-{self.args.processes.rank}')}"

    def _kept_candidates(self, number: int | None) -> dict[str, Path]:
        plan = self.args.make_plan()
        phase = plan[-1] if number is None else plan[number - 1]
        folders = {c.name: self._run.candidate(phase.number, c.name) for c in phase.candidates}
        kept = {name: folder for name, folder in folders.items() if (folder / MASKS).is_file()}
        if not kept:
            raise ValueError(
                f"Expected the candidates of phase {phase.number} in {self._run.root}, found none. Train with "
                "keep_candidates=True."
            )
        for name in kept:
            try:
                check_files(self._run.candidate_record(phase.number, name))
            except DamagedError as error:
                raise DamagedError(
                    f"Expected the candidates of phase {phase.number} as the run wrote them, but {error}. What is made of "
                    f"them would be wrong: remove {kept[name]} to go on without it, or train again in another folder."
                ) from error
        return kept

    # ---- Models and their metrics ------------------------------------------------------------------------------------

    def _copy(self) -> torch.nn.Module:
        return copy.deepcopy(self.model)

    def _load(self, folder: Path, phase: Phase | None = None) -> torch.nn.Module:
        """A copy with the weights of a folder; dense ones (DPF) are pruned as the phase says."""
        model = self._copy()
        load_weights_(model, folder)
        if phase is not None and phase.keeps_dense:
            self._prune_(model, phase.sparsity, None, phase.number)
            self._recalibrate_(model)
        else:
            Masks.load(folder / MASKS).check(model)
        return model

    def _evaluate_folder(self, folder: Path, phase: Phase | None = None, dataset=None) -> dict[str, float]:
        return self._evaluate_copy(self._load(folder, phase), dataset)

    def _evaluate_copy(self, model: torch.nn.Module, dataset=None) -> dict[str, float]:
        """Metrics on the evaluation set (or another) by the run's own arguments, whatever the candidate's were."""
        trainer = self._judge(model)
        results = without_timings(trainer.evaluate(dataset)).items()
        metrics = {name.removeprefix("eval_"): value for name, value in results if name.startswith("eval_")}
        metric = self.args.selection_metric[0]
        if metric not in metrics:
            returned = ", ".join(sorted(metrics)) or "none: its data have no labels"
            raise ValueError(
                f"metric_for_best_model must be a metric that the evaluation returns ({returned}), got {metric!r}. "
                "Return it from compute_metrics, or choose another."
            )
        return metrics

    def _judge(self, model: torch.nn.Module) -> Any:
        """A silent trainer of a model, by the run's own arguments."""
        trainer = spawn(self, model, silent_args(self.args))
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer

    def _prune_(self, model: torch.nn.Module, sparsity: float, within: Masks | None, number: int) -> Masks:
        """Prune a model in place as the arguments say; `number`: the phase, for the random criterion."""
        if within is not None and within.num_kept == within.num_weights:
            within = None  # Nothing is gone yet.
        return prune(
            model,
            sparsity,
            scope=self.args.pruning_scope,
            criterion=self.args.pruning_criterion,
            pattern=self.args.pruning_pattern,
            target_modules=self.args.target_modules,
            exclude_modules=self.args.exclude_modules,
            max_sparsity_per_layer=self.args.max_sparsity_per_layer,
            within=within,
            seed=self.args.seed + number,
        )

    def _save_model(self, model: torch.nn.Module, masks: Masks | None, folder: Path) -> None:
        trainer = self._judge(model)
        trainer.masks = masks
        remove_unfinished(folder)
        trainer._save_named(folder)

    # ---- Batch norm --------------------------------------------------------------------------------------------------

    @property
    def _recalibrates(self) -> bool:
        return self.args.bn_recalibration_fraction > 0 and has_batch_norm(self.model)

    def _recalibrate_(self, model: torch.nn.Module, at_most: int | None = None) -> None:
        """
        Estimate the statistics of batch norms again: those of an average are not the average of the statistics.

        `at_most`: so many batches, where an estimate is enough.
        """
        if not self._recalibrates:
            return
        with torch.random.fork_rng():
            # In order, without labels smoothed or rows shuffled; a collator that draws numbers draws the same ones.
            loader = self._judge(model).get_eval_dataloader(self.train_dataset)
            torch.manual_seed(self.args.seed)
            # A stream has no length; its training has max_steps.
            length = len(loader) if hasattr(self.train_dataset, "__len__") else self.args.max_steps
            batches = math.ceil(self.args.bn_recalibration_fraction * length)
            recalibrate_batch_norm_(model, loader, batches if at_most is None else min(batches, at_most))

    def _recalibrate_folder(self, folder: Path, at_most: int | None = None) -> None:
        if self._recalibrates:
            model = self._load(folder)
            self._recalibrate_(model, at_most)
            self._save_model(model, Masks.load(folder / MASKS), folder)
