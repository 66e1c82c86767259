"""From the candidates of a phase to one model, and what can be said about them."""

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ..files.folder import MASKS
from ..soup.averaging import average_checkpoints
from ..soup.diagnostics import (
    advice,
    barrier,
    find_rifts,
    find_twins,
    mask_overlap,
    pairwise_geometry,
    theoretical_speedup,
    twin_advice,
)
from ..soup.recipes import SOUP_METHODS
from ..sparsity.masks import Masks, check_fingerprint
from .candidates import Phase
from .run_directory import RunDirectory, write_record
from .scoring import ScoringMixin
from .stopping import leave_if_wished

MIDPOINT_BATCHES = 8
"""Batches from which the batch norms of a midpoint are estimated: its loss on one batch only has to tell a rift."""


class MergingMixin(ScoringMixin):
    """Averages candidates as their phase says, and measures how they lie to each other."""

    def _merge(
        self, phase: Phase, records: list[dict[str, Any]], run: RunDirectory
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Choose ingredients, average and score them: the soup's record, and the diagnostics made before anything was tried."""
        usable = {record["name"]: record for record in records if not record["failure"]}
        metric, greater = self.args.selection_metric
        for record in usable.values() if not phase.keeps_dense else ():
            folder = run.candidate(phase.number, record["name"])
            check_fingerprint(Masks.load(folder / MASKS), record["mask_fingerprint"], str(folder))
        diagnostics = run.whole(run.diagnostics_record(phase.number)) or write_record(
            run.diagnostics_record(phase.number), _survive(lambda: self._diagnose_candidates(phase, usable, run))
        )
        # Equal ingredients give equal bytes, so what was scored once, a candidate or a trial, is not scored again.
        metrics_of: dict[str, dict[str, float]] = {name: record["metrics"] for name, record in usable.items()}
        metrics_of |= run.whole(run.trials_record(phase.number)) or {}

        def evaluate(names: list[str]) -> float:
            key = "+".join(names)
            if key not in metrics_of:
                trial = self._average(phase, names, run, run.trial(phase.number))
                metrics_of[key] = self._evaluate_folder(trial, phase)
                write_record(run.trials_record(phase.number), metrics_of)
            return metrics_of[key][metric]

        method = self.args.soup_method if phase.merge == "soup" else "uniform"
        scores = {name: record["score"] for name, record in usable.items()}
        chosen, trials = SOUP_METHODS[method](scores, evaluate, greater)
        run.remove(run.trial(phase.number))
        soup = self._average(phase, chosen, run, run.soup(phase.number))
        metrics = metrics_of.get("+".join(chosen)) or self._evaluate_folder(soup, phase)
        record = {
            "ingredients": list(chosen),
            "score": metrics[metric],
            "metrics": dict(metrics),
            "trials": [vars(trial) for trial in trials],
        }
        if phase.keeps_dense:
            return record | {"sparsity": phase.sparsity}, diagnostics
        masks = Masks.load(soup / MASKS)
        record |= {"sparsity": masks.sparsity(), "sparsity_per_tensor": masks.sparsity_per_tensor()}
        found = _survive(lambda: self._diagnose_soup(phase, soup, masks, record["ingredients"], run))
        return record, {**diagnostics, **found, "warnings": diagnostics["warnings"] + found["warnings"]}

    def _average(
        self, phase: Phase, names: list[str], run: RunDirectory, output: Path, batches: int | None = None
    ) -> Path:
        """`batches`: at most so many for the statistics of batch norms."""
        leave_if_wished()
        folders = [run.candidate(phase.number, name) for name in names]
        run.remove(output)  # The new average would lie beside the old one until it is whole.
        average_checkpoints(folders, output, union_of_masks=phase.merge != "soup")
        if phase.merge == "reprune":
            model, union = self._load(output), Masks.load(output / MASKS)
            self._save_model(model, self._prune_(model, phase.sparsity, union, phase.number), output)
        if not phase.keeps_dense:
            self._recalibrate_folder(output, batches)
        return output

    # ---- Diagnostics -------------------------------------------------------------------------------------------------

    def _diagnose_candidates(
        self, phase: Phase, usable: Mapping[str, Mapping[str, Any]], run: RunDirectory
    ) -> dict[str, Any]:
        """How the candidates lie to each other, and whether the middle between two of them is worse than both."""
        if len(usable) < 2:
            return {"warnings": []}
        folders = {name: run.candidate(phase.number, name) for name in usable}
        names = [name for name, _ in self.model.named_parameters()]
        geometry = pairwise_geometry(list(folders.values()), names)
        batch = next(iter(self._judge(self._copy()).get_eval_dataloader()))
        overrides = {name: record["overrides"] for name, record in usable.items()}
        twins = [twin_advice(first, second, overrides) for first, second in find_twins(list(usable), geometry)]
        if not self.can_return_loss and any(batch.get(name) is None for name in self.label_names):
            return {"geometry": geometry, "warnings": [*twins, "no midpoint check: the evaluation data have no labels"]}
        losses = {name: self._batch_loss(folder, phase, batch) for name, folder in folders.items()}
        middles: dict[tuple[str, str], float] = {}
        for pair in combinations(usable, 2):
            middle = self._average(phase, list(pair), run, run.trial(phase.number), MIDPOINT_BATCHES)
            middles[pair] = self._batch_loss(middle, phase, batch)
        rifts = find_rifts(losses, middles)
        return {
            "geometry": geometry,
            "batch_losses": losses,
            "midpoints": [
                {"between": list(pair), "loss": loss, "barrier": barrier(losses[pair[0]], loss, losses[pair[1]])}
                for pair, loss in middles.items()
            ],
            "warnings": [*twins, *(advice(rift, overrides) for rift in rifts)],
        }

    def _diagnose_soup(
        self, phase: Phase, soup: Path, masks: Masks, ingredients: list[str], run: RunDirectory
    ) -> dict[str, Any]:
        """What the zeros could save, and how the mask relates to others."""
        judge = self._judge(self._load(soup))
        inputs = judge._prepare_inputs(next(iter(judge.get_eval_dataloader())))
        found: dict[str, Any] = {"theoretical_speedup": theoretical_speedup(judge.model, masks, inputs), "warnings": []}
        before = run.soup(phase.number - 1) / MASKS
        if before.is_file():
            found["mask_overlap_with_previous_phase"] = mask_overlap(Masks.load(before), masks)
        if phase.own_parents:
            own = {name: Masks.load(run.candidate(phase.number, name) / MASKS) for name in ingredients}
            found["mask_overlaps"] = [
                {"between": [a, b], "overlap": mask_overlap(own[a], own[b])} for a, b in combinations(own, 2)
            ]
        return found

    @torch.no_grad()
    def _batch_loss(self, folder: Path, phase: Phase, batch: Mapping[str, Any]) -> float:
        judge = self._judge(self._load(folder, phase))
        judge.model.eval()
        with judge.compute_loss_context_manager():
            return float(judge.compute_loss(judge.model, judge._prepare_inputs(dict(batch))))


def _survive(diagnose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Hours of training must not be lost to a measurement: where one fails, the report and a line say so."""
    try:
        return diagnose()
    except Exception as error:
        return {"warnings": [f"diagnostics failed: {type(error).__name__}: {error}"]}
