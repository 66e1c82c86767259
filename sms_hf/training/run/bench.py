"""The one door to models: copies of the user's model that are loaded, pruned, scored and saved."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...sparsity.masks import Masks
from ...sparsity.patterns import nm_skipped
from ...sparsity.pruning import prune
from ..arguments import SparseSoupArguments
from ..batch_norm import has_batch_norm, recalibrate_batch_norm_
from ..cost.measure import prunable_weights
from ..masked.checkpoints import Source, load_tensors_, load_weights_
from ..masked.distillation import logits_of
from ..masked.repairs import forget_accelerate_
from ..masked.teaching import Teacher
from ..plan.candidates import Phase
from ..run_directory import remove_unfinished
from ..scoring import FEWEST_BLOCKS, KeptPredictions, Score, resampled_scores
from ..spawning import own_collator, silent_args, spawn, without_progress
from .records import without_timings


class Bench:
    """
    What can be done with a model of a run, whoever's weights it holds.

    Args:
        trainer: The user's. Its model only serves to be copied, its data to be read; every score is made by a fresh trainer
            of its class.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.args: SparseSoupArguments = trainer.args
        self.metric, self.greater_is_better = self.args.selection_metric

    # ---- The user's trainer ------------------------------------------------------------------------------------------

    def release_(self) -> None:
        """Make the trainer's model plain again and move it off the accelerator: from here on it only serves to be copied."""
        trainer = self.trainer
        forget_accelerate_(trainer.model)
        trainer.accelerator.free_memory()
        trainer.model_wrapped = trainer.model.to("cpu")

    def hold_(self, folder: Path) -> None:
        """Make the trainer that of the model in a folder."""
        trainer = self.trainer
        load_weights_(trainer.model, folder)
        trainer.masks = Masks.of(folder)
        trainer._move_model_to_device(trainer.model, self.args.device)

    # ---- Weights -----------------------------------------------------------------------------------------------------

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.trainer.model)

    def load(self, folder: Path, phase: Phase | None = None) -> nn.Module:
        """A copy with the weights of a folder; dense ones (DPF) are pruned as the phase says."""
        model = self.copy()
        load_weights_(model, folder)
        if phase is not None and phase.keeps_dense:
            self.prune_(model, phase.sparsity, None, phase.number)
            self.recalibrate_(model)
        else:
            Masks.of(folder).check(model)
        return model

    def teacher(self, args: SparseSoupArguments, cached: Path) -> Teacher | None:
        """What a candidate with these arguments is asked for; `cached`: the logits, where they were computed before."""
        if not args.distill_weight and not args.distill_features:
            return None
        asked = (args.distill_weight, args.distill_temperature, args.distill_features)
        if args.distill_cache:
            return Teacher(*asked, logits=load_file(cached)["logits"])
        return Teacher(*asked, model=self._dense())

    def _dense(self) -> nn.Module:
        """The model before pruning, on the device, for its answers alone."""
        return self.copy().to(self.args.device).eval().requires_grad_(False)

    @torch.no_grad()
    def teacher_logits(self) -> torch.Tensor:
        """Logits of the model before pruning for every row of the training data, `(rows, classes)`, float32."""
        judge, model, found = self.judge(self.copy()), self._dense(), []
        for batch in self.loader(self.trainer.train_dataset):
            with judge.compute_loss_context_manager():
                found.append(logits_of(model(**judge._prepare_inputs(dict(batch)))).float().cpu())
        rows = len(self.trainer.train_dataset)
        if any(logits.dim() != 2 for logits in found) or sum(map(len, found)) != rows:
            raise ValueError(
                f"distill_cache needs logits (rows, classes), one for each of the {rows} rows, got {tuple(found[0].shape)} of a "
                "batch. Leave it out: the model before pruning is then asked in every step."
            )
        return torch.cat(found)

    def load_from(self, source: Source) -> nn.Module:
        """A copy with the weights of whatever holds them by name."""
        model = self.copy()
        load_tensors_(model, source)
        return model

    def save(self, model: nn.Module, masks: Masks | None, folder: Path) -> None:
        """Write a model folder as the user's trainer does, with the names of the state dict."""
        remove_unfinished(folder)
        with self._holding(model, masks):
            self.trainer.save_named(folder)

    @contextmanager
    def _holding(self, model: nn.Module, masks: Masks | None):
        trainer = self.trainer
        before, their_masks = trainer.model, trainer.masks
        trainer.masks, trainer.model = None, model
        try:
            trainer.masks = masks
            yield
        finally:
            trainer.masks, trainer.model = None, before
            trainer.masks = their_masks

    # ---- Pruning -----------------------------------------------------------------------------------------------------

    def prune_(self, model: nn.Module, sparsity: float, within: Masks | None, number: int) -> Masks:
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
            calibration=self._calibration,
        )

    def _calibration(self, model: nn.Module) -> Iterator[torch.Tensor]:
        """Losses of the first batches of the training data, for criteria that look at data."""
        judge = self.judge(model)
        with torch.random.fork_rng():
            loader = self.loader(self.trainer.train_dataset)
            torch.manual_seed(self.args.seed)
            for batch in islice(loader, self.args.calibration_batches):
                with judge.compute_loss_context_manager():
                    loss = judge.compute_loss(model, judge._prepare_inputs(dict(batch)))
                yield loss

    def all_kept(self, model: nn.Module) -> Masks:
        """Masks of the parameters that pruning will cover, before it has removed anything."""
        return Masks.all_kept(prunable_weights(model, self.args))

    def skipped_by_pattern(self, model: nn.Module) -> dict[str, str]:
        """Prunable tensors that an N:M pattern leaves whole -> why."""
        return nm_skipped(model, self.args.pruning_pattern, self.args.target_modules, self.args.exclude_modules)

    # ---- Scores ------------------------------------------------------------------------------------------------------

    def judge(self, model: nn.Module) -> Any:
        """A silent trainer of a model, by the run's own arguments."""
        return without_progress(spawn(self.trainer, model, silent_args(self.args)))

    def evaluate(self, model: nn.Module, dataset: Any = None) -> dict[str, float]:
        """Metrics on the evaluation set (or another) by the run's own arguments, whatever the candidate's were."""
        return self._metrics(self.judge(model).evaluate(dataset))

    def score(self, model: nn.Module) -> Score:
        """Metrics on the evaluation set, and what a greedy soup asks of their noise."""
        return self.score_on(model) if self.args.soup_method == "greedy" else Score(self.evaluate(model), None)

    def score_on(self, model: nn.Module, dataset: Any = None) -> Score:
        """Metrics on the evaluation set (or another), and their noise where it can be told."""
        judge = self.judge(model)
        if isinstance(judge.eval_dataset if dataset is None else dataset, dict):
            return Score(self._metrics(judge.evaluate(dataset)), None)
        kept = KeptPredictions(judge.compute_metrics)
        if judge.compute_metrics is not None and not judge.args.batch_eval_metrics:
            judge.compute_metrics = kept
        metrics = self._metrics(judge.evaluate(dataset))
        any_metric = self.args.soup_min_gain is not None
        return Score(metrics, resampled_scores(self.metric, kept, judge.loss_parts, any_metric))

    def score_dense(self, model: nn.Module) -> dict[str, float]:
        """
        Metrics on the evaluation set, before hours of training.

        Raises:
            ValueError: If `soup_min_gain` is asked for, and the noise of the metric cannot be told.
        """
        if self.args.soup_min_gain is None:
            return self.evaluate(model)
        score = self.score(model)
        if score.resampled is None:
            raise ValueError(
                f"soup_min_gain needs {self.metric!r} on samples of the evaluation set, which cannot be told here. Expected one "
                f"evaluation set, at least {FEWEST_BLOCKS} batches of it where the loss decides (set "
                "per_device_eval_batch_size), no batch_eval_metrics, and a compute_metrics that returns a finite number for rows "
                "that are drawn with replacement. Or leave soup_min_gain out."
            )
        return score.metrics

    def _metrics(self, results: Mapping[str, Any]) -> dict[str, float]:
        found = without_timings(results).items()
        metrics = {name.removeprefix("eval_"): value for name, value in found if name.startswith("eval_")}
        if self.metric not in metrics:
            returned = ", ".join(sorted(metrics)) or "none: its data have no labels"
            raise ValueError(
                f"metric_for_best_model must be a metric that the evaluation returns ({returned}), got {self.metric!r}. "
                "Return it from compute_metrics, or choose another."
            )
        return metrics

    @torch.no_grad()
    def batch_loss(self, model: nn.Module, batch: Mapping[str, Any]) -> float:
        """Loss on one batch, in evaluation mode."""
        judge = self.judge(model)
        model.eval()
        with judge.compute_loss_context_manager():
            return float(judge.compute_loss(model, judge._prepare_inputs(dict(batch))))

    def losses(self, parameters: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Losses of all batches of the evaluation data, of a model with these parameters, to be differentiated by them."""
        judge = self.judge(self.copy())
        lossy = _Loss(judge).to(self.args.device).eval()
        statistics = {name for name, _ in self.trainer.model.named_buffers()}  # Nothing can be differentiated by them.
        for batch in self.loader():
            now = {f"model.{name}": value.to(self.args.device) for name, value in parameters.items()}
            now |= {key: now[key].detach() for name in statistics if (key := f"model.{name}") in now}
            with judge.compute_loss_context_manager():
                yield torch.func.functional_call(lossy, now, (judge._prepare_inputs(dict(batch)),))

    def first_batch(self) -> Any:
        """The first batch of the evaluation data."""
        return next(iter(self.loader()))

    def loader(self, dataset: Any = None) -> Any:
        """The evaluation data, or other data in their own order: no rows shuffled, no labels smoothed."""
        with own_collator(self.trainer):
            return self.trainer.get_eval_dataloader(dataset)

    # ---- Batch norm --------------------------------------------------------------------------------------------------

    @property
    def recalibrates(self) -> bool:
        return self.args.bn_recalibration_fraction > 0 and has_batch_norm(self.trainer.model)

    def recalibrate_(self, model: nn.Module, at_most: int | None = None) -> None:
        """
        Estimate the statistics of batch norms again: those of an average are not the average of the statistics.

        `at_most`: so many batches, where an estimate is enough.
        """
        if not self.recalibrates:
            return
        data = self.trainer.train_dataset
        with torch.random.fork_rng():
            loader = self.loader(data)
            torch.manual_seed(self.args.seed)  # A collator that draws numbers draws the same ones.
            # A stream has no length; its training has max_steps.
            length = len(loader) if hasattr(data, "__len__") else self.args.max_steps
            batches = math.ceil(self.args.bn_recalibration_fraction * length)
            model.to(self.args.device)
            recalibrate_batch_norm_(model, loader, batches if at_most is None else min(batches, at_most))


class _Loss(nn.Module):
    """A trainer's loss as a function of the parameters of its model."""

    def __init__(self, judge: Any):
        super().__init__()
        self.model, self._judge = judge.model, [judge]  # A list, since a module would look into it.

    def forward(self, inputs: Any) -> torch.Tensor:
        return self._judge[0].compute_loss(self.model, inputs)
