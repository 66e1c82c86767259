"""What the candidates of a phase start from."""

from typing import Any

import torch
from torch import nn

from ...files.folder import MASKS
from ...files.records import read_record, write_record
from ...sparsity.masks import Masks, check_fingerprint
from ..masked.candidate import Norms
from ..masked.checkpoints import load_weights_
from ..plan.candidates import Candidate, Phase
from ..run_directory import ORIGIN, PhaseFolder, model_files, read_or_discard
from .bench import Bench
from .records import parent_record


def prune_parent(bench: Bench, phase: Phase, folder: PhaseFolder, origin: str, is_needed: bool) -> dict[str, Any]:
    """
    Prune what the previous phase left, and write it: all candidates of the phase start from these files.

    Where no candidate is to start any more (`is_needed` is off), the record is enough.
    """
    there = read_or_discard(folder.parent_record, files=is_needed)
    if there is not None:
        return there
    model = bench.copy()
    if phase.own_parents:
        # Nothing to write: every candidate prunes itself. The first that is left tells the counts, which are the same.
        masks, norms = _prune_own_(bench, model, phase, folder.before.survivors()[0], folder)
    else:
        within = None
        if phase.number > 1:
            load_weights_(model, folder.before.soup)
            within = Masks.of(folder.before.soup) if (folder.before.soup / MASKS).is_file() else None
        if phase.keeps_dense:
            bench.save(model, None, folder.parent)
        masks, norms = _prune_from_(bench, model, phase, within)
        if not phase.keeps_dense:
            bench.save(model, masks, folder.parent)
    record = parent_record(model, masks, norms, bench.skipped_by_pattern(model)) | {ORIGIN: origin}
    return write_record(folder.parent_record, record, model_files(folder.parent))


def start_candidate_(
    bench: Bench, model: nn.Module, phase: Phase, candidate: Candidate, folder: PhaseFolder
) -> tuple[Masks, Norms]:
    """Put the weights in place that a candidate starts from."""
    if phase.own_parents:
        return _prune_own_(bench, model, phase, candidate.name, folder)
    load_weights_(model, folder.parent)
    parent = read_record(folder.parent_record)
    norms = Norms(**parent["norms"])
    if phase.keeps_dense:
        return bench.all_kept(model), norms
    masks = Masks.of(folder.parent)
    check_fingerprint(masks, parent["mask_fingerprint"], f"{candidate.name} of phase {phase.number}")
    return masks, norms


def _prune_own_(bench: Bench, model: nn.Module, phase: Phase, name: str, folder: PhaseFolder) -> tuple[Masks, Norms]:
    """Load a candidate of the phase before, and prune it on its own."""
    own = folder.before.candidate(name)
    load_weights_(model, own)
    return _prune_from_(bench, model, phase, Masks.of(own))


def _prune_from_(bench: Bench, model: nn.Module, phase: Phase, within: Masks | None) -> tuple[Masks, Norms]:
    """Prune a model to the sparsity of the phase, in place; the norms around it are what ALLR needs."""
    before, alive = weight_norm(model), within.num_kept if within is not None else None
    dense = phase.sparsity == 0
    masks = bench.all_kept(model) if dense else bench.prune_(model, phase.sparsity, within, phase.number)
    fraction = 1.0 - masks.num_kept / (masks.num_weights if alive is None else alive)
    return masks, Norms(before, weight_norm(model), fraction)


def weight_norm(model: nn.Module) -> float:
    """L2 norm of all parameters called `weight` or `bias`, each tied tensor once."""
    parts = [p.detach() for name, p in model.named_parameters() if name.endswith(("weight", "bias"))]
    return float(torch.stack([torch.linalg.vector_norm(p, dtype=torch.float64) for p in parts]).norm())
