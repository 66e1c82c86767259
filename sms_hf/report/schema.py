"""
What `report.json` and `sparse_soup.json` hold: the contract between a run, its card, its tables, and other people's programs.

The same, for readers of the files: docs/report.md. A change that breaks readers raises the number that stands in the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ..files.folder import LINEAGE, REPORT, CheckpointError, read_json

REPORT_VERSION = 1
LINEAGE_FORMAT = "sms_hf.sparse_soup.v1"


Model = TypedDict("Model", {"class": str, "num_parameters": int, "config": dict[str, Any], "weights": str})
"""The model before pruning; of the `weights` a SHA-256, of its `config` what is not its class's default."""


class Settings(TypedDict):
    """What makes a run this run; compared when it is resumed, but for the versions."""

    arguments: dict[str, Any]
    plan: list[dict[str, Any]]
    model: Model
    num_examples: dict[str, int | None]
    data: dict[str, str | None]
    versions: dict[str, str]


class Parent(TypedDict):
    """What the candidates of a phase start from."""

    sparsity: float
    model_sparsity: float
    num_kept: int
    num_weights: int
    mask_fingerprint: str
    sparsity_per_tensor: dict[str, float]
    norms: dict[str, float]
    skipped_by_pattern: dict[str, str]
    origin: str


class Outcome(TypedDict, total=False):
    """What only some candidates have: a traceback those that raised an error, the rest those that did not fail."""

    traceback: str
    mask_fingerprint: str
    metrics: dict[str, float]
    score: float


class Candidate(Outcome):
    """A retrained copy; one that failed has a `failure` and no score."""

    name: str
    overrides: dict[str, Any]
    steps: int
    epochs: float
    total_flos: float
    train_loss: float | None
    log: list[dict[str, Any]]
    failure: str | None
    seconds: float
    started: float
    process: int


class Trial(TypedDict):
    """An average that was tried."""

    ingredients: list[str]
    score: float
    accepted: bool
    standard_error: float | None
    sure: float | None


class _Masked(TypedDict, total=False):
    sparsity_per_tensor: dict[str, float]


class Soup(_Masked):
    """What the candidates became; dense ones (DPF) have no masks yet."""

    ingredients: list[str]
    weights: list[float | dict[str, float]]
    score: float
    metrics: dict[str, float]
    trials: list[Trial]
    sparsity: float


class Diagnostics(TypedDict, total=False):
    """How candidates lie to each other, and what the mask could save."""

    warnings: list[str]
    geometry: dict[str, Any]
    batch_losses: dict[str, float]
    midpoints: list[dict[str, Any]]
    theoretical_speedup: float
    mask_overlap_with_previous_phase: float
    mask_overlaps: list[dict[str, Any]]


class Phase(TypedDict):
    """One cycle of prune, retrain, merge."""

    number: int
    parent: Parent
    candidates: list[Candidate]
    mean_score: float
    best_score: float
    soup: Soup | None
    diagnostics: Diagnostics
    seconds: float


class Report(TypedDict):
    """`report.json`, and `trainer.report`."""

    version: int
    metric: str
    settings: Settings
    dense: dict[str, float]
    phases: list[Phase]


class Comparison(TypedDict):
    """Two models on the test set; of the difference a 95 % interval (paired bootstrap over its rows)."""

    model: str
    against: str
    difference: float
    interval: list[float]


class _Compared(TypedDict, total=False):
    comparisons: list[Comparison]


class Lineage(_Compared):
    """`sparse_soup.json`: what of a report is for everybody, and what was measured since."""

    format: str
    parent: dict[str, str | None]
    model: dict[str, Any]
    metric: str
    sparsity: float
    model_sparsity: float
    mask_fingerprint: str
    sparsity_per_tensor: dict[str, float]
    dense: dict[str, float]
    arguments: dict[str, Any]
    num_examples: dict[str, int | None]
    plan: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    test: dict[str, float] | None
    measured: dict[str, Any] | None
    versions: dict[str, str]


def make_report(
    metric: str, settings: Mapping[str, Any], dense: Mapping[str, float], phases: Sequence[Mapping[str, Any]]
) -> Report:
    """What `report.json` holds; of a run that goes on, as far as it is known."""
    report = {"version": REPORT_VERSION, "metric": metric, "settings": settings, "dense": dense, "phases": list(phases)}
    return cast("Report", report)


def read_report(folder: str | Path) -> Report:
    """
    The report in the folder of a run.

    Raises:
        CheckpointError: Where there is none, or another version of sms_hf wrote it.
    """
    path = Path(folder) / REPORT
    return cast("Report", _checked(path, read_json(path), "version", REPORT_VERSION))


def read_lineage(folder: str | Path) -> Lineage:
    """
    The lineage in a model folder.

    Raises:
        CheckpointError: As for [`read_report`].
    """
    path = Path(folder) / LINEAGE
    return cast("Lineage", _checked(path, read_json(path), "format", LINEAGE_FORMAT))


def _checked(path: Path, value: Mapping[str, Any], key: str, expected: Any) -> dict[str, Any]:
    if value.get(key) != expected:
        raise CheckpointError(
            f"{path} must be of {key} {expected!r}, got {value.get(key)!r}. Read it with the version of sms_hf that wrote it."
        )
    return dict(value)
