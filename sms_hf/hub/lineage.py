"""`sparse_soup.json`: where a model comes from, for people and programs that have only the repository."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..report.schema import LINEAGE_FORMAT, Comparison, Lineage, Report
from ..sparsity.masks import Masks

_LOCAL = ("original_schedule", "generation_config")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)  # Of a repository.


def is_repo_name(name: str) -> bool:
    """Whether this can be a repository of the Hub. A path (`../model`) cannot, even where the folder is gone."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return _NAME.fullmatch(name) is not None


def cached_revision(name: str | None) -> str | None:
    """Commit of a repository that the local cache holds, as of the last download; None for folders and unknown names."""
    if name is None or not is_repo_name(name):
        return None
    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


def make_lineage(
    report: Report,
    masks: Masks,
    parent: str | None = None,
    revision: str | None = None,
    test: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    comparisons: Sequence[Comparison] = (),
) -> Lineage:
    """
    The lineage of a finished run. [`format_report`] takes it for a report.

    Args:
        report ([`Report`]): What `report.json` holds.
        masks ([`Masks`]): Of the final model.
        parent (`str`, *optional*): Name of the model that was pruned. A folder is not named: it means nothing elsewhere.
        revision (`str`, *optional*): Commit of the parent.
        test (`Mapping`, *optional*): Row of the table -> test score.
        measured (`Mapping`, *optional*): Speed, and the machine that it was measured on.
        comparisons (`Sequence`, *optional*): Of test scores.

    Returns:
        [`Lineage`]: JSON values.
    """
    settings = report["settings"]
    is_local = parent is None or not is_repo_name(parent) or os.path.isdir(parent)
    lineage: Lineage = {
        "format": LINEAGE_FORMAT,
        "parent": {"name": None if is_local else parent, "revision": None if is_local else revision},
        "model": {key: settings["model"][key] for key in ("class", "num_parameters")},
        "metric": report["metric"],
        "sparsity": masks.sparsity(),
        "model_sparsity": (masks.num_weights - masks.num_kept) / settings["model"]["num_parameters"],
        "mask_fingerprint": masks.fingerprint(),
        "sparsity_per_tensor": masks.sparsity_per_tensor(),
        "dense": report["dense"],
        "arguments": {key: value for key, value in settings["arguments"].items() if not _is_local(key)},
        "num_examples": settings["num_examples"],
        "plan": settings["plan"],
        "phases": [_phase(phase) for phase in report["phases"]],
        "test": dict(test) if test else None,
        "measured": dict(measured) if measured else None,
        "versions": settings["versions"],
    }
    return {**lineage, "comparisons": list(comparisons)} if comparisons else lineage


def _is_local(argument: str) -> bool:
    """Whether it may be a path of the machine that made the model: nobody else's business."""
    return argument in _LOCAL or argument.endswith(("_path", "_dir", "_file", "_folder"))


def _phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    known = ("name", "overrides", "steps", "epochs", "score", "metrics", "failure", "mask_fingerprint")
    soup = phase["soup"]
    return {
        "number": phase["number"],
        "parent": {key: phase["parent"][key] for key in ("sparsity", "mask_fingerprint")},
        "candidates": [{key: c[key] for key in known if key in c} for c in phase["candidates"]],
        "mean_score": phase["mean_score"],
        "best_score": phase["best_score"],
        "soup": soup and {key: soup[key] for key in ("ingredients", "score", "metrics", "trials", "sparsity")},
    }
