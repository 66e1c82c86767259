"""How the candidates of a phase lie to each other, and what the mask of their soup could save."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ...files.folder import MASKS
from ...soup.diagnostics import (
    advice,
    barrier,
    find_rifts,
    find_twins,
    mask_overlap,
    pairwise_geometry,
    theoretical_speedup,
    twin_advice,
)
from ...sparsity.masks import Masks
from ..plan.candidates import Phase
from ..run_directory import PhaseFolder
from .bench import Bench

MIDPOINT_BATCHES = 8
"""Batches from which the batch norms of a midpoint are estimated: its loss on one batch only has to tell a rift."""


def diagnose_candidates(
    bench: Bench,
    phase: Phase,
    folder: PhaseFolder,
    usable: Mapping[str, Mapping[str, Any]],
    average_of: Callable[[Mapping[str, float], int], Path],
) -> dict[str, Any]:
    """
    How the candidates lie to each other, and whether the middle between two of them is worse than both.

    Args:
        usable (`Mapping[str, Mapping]`): Candidate -> its record.
        average_of (`Callable`): Name -> weight and a number of batches for batch norms -> folder of their average.
    """
    if len(usable) < 2:
        return {"warnings": []}
    trainer, folders = bench.trainer, {name: folder.candidate(name) for name in usable}
    names = [name for name, _ in trainer.model.named_parameters()]
    geometry = pairwise_geometry(list(folders.values()), names)
    batch = bench.first_batch()
    overrides = {name: record["overrides"] for name, record in usable.items()}
    twins = [twin_advice(first, second, overrides) for first, second in find_twins(list(usable), geometry)]
    if not trainer.can_return_loss and any(batch.get(name) is None for name in trainer.label_names):
        return {"geometry": geometry, "warnings": [*twins, "no midpoint check: the evaluation data have no labels"]}

    def loss(path: Path) -> float:
        return bench.batch_loss(bench.load(path, phase), batch)

    losses = {name: loss(path) for name, path in folders.items()}
    middles = {pair: loss(average_of(dict.fromkeys(pair, 1.0), MIDPOINT_BATCHES)) for pair in combinations(usable, 2)}
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


def diagnose_soup(
    bench: Bench, phase: Phase, folder: PhaseFolder, masks: Masks, ingredients: Sequence[str]
) -> dict[str, Any]:
    """What the zeros could save, and how the mask relates to others."""
    model = bench.load(folder.soup).to(bench.args.device)
    inputs = bench.trainer._prepare_inputs(bench.first_batch())
    found: dict[str, Any] = {"theoretical_speedup": theoretical_speedup(model, masks, inputs), "warnings": []}
    before = folder.before.soup
    if (before / MASKS).is_file():
        found["mask_overlap_with_previous_phase"] = mask_overlap(Masks.of(before), masks)
    if phase.own_parents:
        own = {name: Masks.of(folder.candidate(name)) for name in ingredients}
        found["mask_overlaps"] = [
            {"between": [a, b], "overlap": mask_overlap(own[a], own[b])} for a, b in combinations(own, 2)
        ]
    return found
