"""From the candidates of a phase to one model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files.records import write_record
from ...soup.averaging import Average, Weight, average_checkpoints
from ...soup.ingredients import SOUP_METHODS
from ...soup.outer_step import outer_step
from ...soup.pool import Pool
from ...sparsity.masks import Masks, check_fingerprint
from ..plan.candidates import Phase
from ..processes.say import tell
from ..processes.stopping import leave_if_wished
from ..run_directory import PhaseFolder, read_or_discard, remove
from .bench import Bench
from .diagnosing import diagnose_candidates, diagnose_soup


def merge(
    bench: Bench, phase: Phase, folder: PhaseFolder, records: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose ingredients, average and score them: the soup's record, and the diagnostics made before anything was tried."""
    usable = {record["name"]: record for record in records if not record["failure"]}
    for record in usable.values() if not phase.keeps_dense else ():
        own = folder.candidate(record["name"])
        check_fingerprint(Masks.of(own), record["mask_fingerprint"], str(own))

    def average_of(weights: Mapping[str, Weight], batches: int | None = None) -> Path:
        return average(bench, phase, folder, weights, folder.trial, batches=batches)

    diagnostics = read_or_discard(folder.diagnostics) or write_record(
        folder.diagnostics, _survive(lambda: diagnose_candidates(bench, phase, folder, usable, average_of))
    )
    # Equal ingredients give equal bytes, so what was scored once, a candidate or a trial, is not scored again.
    scored = {name: {"metrics": record["metrics"], "resampled": record["resampled"]} for name, record in usable.items()}
    scored |= read_or_discard(folder.trials) or {}

    def evaluate(weights: Mapping[str, Weight]) -> float:
        key = _formula(weights)
        if key not in scored:
            scored[key] = vars(bench.score(bench.load(average_of(weights), phase)))
            write_record(folder.trials, scored)
        tell("trial", ingredients=list(weights), score=scored[key]["metrics"][bench.metric])
        return scored[key]["metrics"][bench.metric]

    def resampled(weights: Mapping[str, Weight]) -> Sequence[float] | None:
        return scored[_formula(weights)]["resampled"]

    method = bench.args.soup_method if phase.merge == "soup" else "uniform"
    scores = {name: record["score"] for name, record in usable.items()}
    pool = Pool(
        scores,
        evaluate,
        bench.greater_is_better,
        resampled,
        bench.args.soup_min_gain or 0.0,
        {name: folder.candidate(name) for name in usable},
        folder.parent if folder.parent.is_dir() else None,
        bench.losses,
    )
    chosen, trials = SOUP_METHODS[method](pool)
    remove(folder.trial)
    soup, known = average(bench, phase, folder, chosen, folder.soup), scored.get(_formula(chosen))
    if phase.outer_step is not None:
        soup, known = _step(bench, phase, folder), None
    metrics = known["metrics"] if known else bench.evaluate(bench.load(soup, phase))
    record = {
        "ingredients": list(chosen),
        "weights": [dict(weight) if isinstance(weight, Mapping) else weight for weight in chosen.values()],
        "score": metrics[bench.metric],
        "metrics": dict(metrics),
        "trials": [vars(trial) for trial in trials],
    }
    if phase.keeps_dense:
        return record | {"sparsity": phase.sparsity}, diagnostics
    masks = Masks.of(soup)
    record |= {"sparsity": masks.sparsity(), "sparsity_per_tensor": masks.sparsity_per_tensor()}
    found = _survive(lambda: diagnose_soup(bench, phase, folder, masks, list(chosen)))
    return record, {**diagnostics, **found, "warnings": diagnostics["warnings"] + found["warnings"]}


def average(
    bench: Bench,
    phase: Phase,
    folder: PhaseFolder,
    weights: Mapping[str, Weight],
    output: Path,
    batches: int | None = None,
) -> Path:
    """
    Average candidates (name -> weight) as their phase says.

    `batches`: at most so many for the statistics of batch norms.
    """
    leave_if_wished()
    folders, shares, union = [folder.candidate(n) for n in weights], list(weights.values()), phase.merge != "soup"
    remove(output)  # The new average would lie beside the old one until it is whole.
    recalibrates = bench.recalibrates and not phase.keeps_dense
    if phase.merge != "reprune" and not recalibrates:
        return average_checkpoints(folders, output, shares, union_of_masks=union)
    with Average(folders, shares, union_of_masks=union) as averaged:
        model, masks = bench.load_from(averaged), averaged.masks
    if phase.merge == "reprune":
        masks = bench.prune_(model, phase.sparsity, masks, phase.number)
    if recalibrates:
        bench.recalibrate_(model, batches)
    bench.save(model, masks, output)
    return output


def _step(bench: Bench, phase: Phase, folder: PhaseFolder) -> Path:
    """Put an outer step from the parent towards the soup in the soup's place."""
    assert phase.outer_step is not None
    before = folder.before.velocity if phase.goes_on else None
    remove(folder.trial)
    remove(folder.velocity)
    folder.soup.rename(folder.trial)
    after = folder.velocity if phase.keeps_optimizers else None
    outer_step(folder.trial, folder.parent, before, phase.outer_step, folder.soup, after)
    if bench.recalibrates:
        model = bench.load(folder.soup)
        bench.recalibrate_(model)
        bench.save(model, Masks.of(folder.soup), folder.soup)
    remove(folder.trial)
    return folder.soup


def _formula(weights: Mapping[str, Weight]) -> str:
    """The name of an average: `candidate-1+candidate-3`, the weights where they are not 1, a digest of weights by tensor."""
    return "+".join(name if weight == 1 else f"{_factor(weight)}*{name}" for name, weight in weights.items())


def _factor(weight: Weight) -> str:
    if not isinstance(weight, Mapping):
        return repr(weight)
    return hashlib.sha256(json.dumps(dict(weight), sort_keys=True).encode()).hexdigest()


def _survive(diagnose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Hours of training must not be lost to a measurement: where one fails, the report and a line say so."""
    try:
        return diagnose()
    except Exception as error:
        return {"warnings": [f"diagnostics failed: {type(error).__name__}: {error}"]}
