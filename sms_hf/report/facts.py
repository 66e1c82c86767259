"""What a page says of a run: pure functions from a report, whole or of a run that goes on, to rows and sentences."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files.folder import MASKS
from .comparison import describe_comparison
from .table import decimals, describe, phase_rows, sparsity_of
from .text import format_bytes, format_seconds

SHOWN = (
    *("pruning_method", "target_sparsity", "num_phases", "num_candidates", "vary", "soup_method", "soup_min_gain"),
    *("pruning_scope", "pruning_criterion", "pruning_pattern", "num_train_epochs", "max_steps", "learning_rate"),
    *("per_device_train_batch_size", "retrain_schedule", "lr_scheduler_type", "seed"),
)
"""Arguments that stand open in the page, where they are set; the others can be opened."""
WRITTEN = 8
"""Candidates up to which numbers stand in the cells of a heat map."""
OPEN_ROWS = 12
"""Candidates of a phase that stand open in the page; more can be opened."""
MOST_TENSORS = 600
"""Rows of the heat map of sparsity."""


@dataclass(frozen=True)
class Run:
    """
    A run as its folder holds it.

    Attributes:
        name (`str`): What its folder is called.
        report (`Mapping`): `report.json`; of a run that goes on the same as far as it is known, with None for the rest.
        lineage (`Mapping`, *optional*): `sparse_soup.json`.
        sizes (`Mapping[str, int]`): File or folder -> bytes.
        load (`Sequence[str]`): Lines of Python that load the final model.
        unfinished (`str`, *optional*): How far a run is that goes on or was stopped; None for one that is finished.
    """

    name: str
    report: Mapping[str, Any]
    lineage: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    load: Sequence[str] = ()
    unfinished: str | None = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.report["settings"]["arguments"]

    @property
    def tests(self) -> Mapping[str, float]:
        return (self.lineage or {}).get("test") or {}

    @property
    def sign(self) -> float:
        """1 where greater scores are better, else -1."""
        greater = self.arguments.get("greater_is_better")
        return 1.0 if (not self.report["metric"].endswith("loss") if greater is None else greater) else -1.0

    @property
    def scores(self) -> Iterator[float]:
        for phase in self.report["phases"]:
            yield from (c["score"] for c in phase["candidates"] if c.get("score") is not None)
        yield from (self.report["dense"][m] for m in [self.report["metric"]] if m in self.report["dense"])

    def score(self, value: float | None) -> str:
        """A score as this run's tables show it."""
        return "" if value is None else f"{value:.{decimals(self.scores)}f}"

    def final(self) -> tuple[str, float | None, float | None]:
        """What the run ended with (so far): its name, score and test score."""
        for phase in reversed(self.report["phases"]):
            name = f"phase-{phase['number']}"
            if phase["soup"]:
                return (
                    "soup" if len(phase["candidates"]) > 1 else "model",
                    phase["soup"]["score"],
                    self.tests.get(f"{name}/soup"),
                )
            if phase["best_score"] is not None:
                return "best candidate", phase["best_score"], None
        return "", None, None


# ---- The head ----------------------------------------------------------------------------------------------------------


def summary(run: Run) -> str:
    """One sentence: what the model is."""
    report = run.report
    planned, model = report["settings"]["plan"], report["settings"]["model"]["class"]
    if run.unfinished or not report["phases"]:
        target = max((phase["sparsity"] for phase in planned), default=0.0)
        return f"{model}, to lose {100 * target:.4g} % of its prunable weights in {_count(len(planned), 'phase')}."
    last = report["phases"][-1]
    text = f"{model} without {100 * _final_sparsity(last):.4g} % of its prunable weights: pruned in "
    text += _count(len(report["phases"]), "phase")
    count, soup = len(last["candidates"]), last["soup"]
    if soup and len(soup["ingredients"]) > 1:
        return f"{text}, averaged from {len(soup['ingredients'])} of {_count(count, 'retrained copy', 'retrained copies')}."
    if count > 1 and soup:
        return f"{text}, retrained: the best of {count} candidates, averaging did not help."
    return f"{text}, retrained."


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """Label, number and remark of what is looked at first."""
    report, metric = run.report, run.report["metric"]
    dense, (what, score, test) = report["dense"].get(metric), run.final()
    found = []
    if score is not None:
        gap = "" if dense is None else f"{_signed(run, score - dense)} against dense"
        found.append((f"{metric} of the {what}", run.score(score), gap))
    if dense is not None:
        found.append((f"{metric} before pruning", run.score(dense), "dense model"))
    if test is not None:
        before = run.tests.get("dense")
        found.append((f"test {metric}", run.score(test), f"dense {run.score(before)}" if before is not None else ""))
    if pruned := [phase for phase in report["phases"] if phase["parent"]["num_weights"]]:
        last = pruned[-1]
        whole = last["parent"]["model_sparsity"] if not run.lineage else run.lineage["model_sparsity"]
        found.append(("sparsity", f"{100 * _final_sparsity(last):.4g} %", f"{100 * whole:.4g} % of all weights"))
        if speedup := last["diagnostics"].get("theoretical_speedup"):
            found.append(("fewer operations", f"{speedup:.3g} x", "bound, counted from the mask"))
    if weights := _weights(run):
        found.append(("on disk", format_bytes(min(_forms(weights))), "weights alone"))
    seconds = [phase["seconds"] for phase in report["phases"] if phase["seconds"] is not None]
    if seconds:
        trained = sum("going_on" not in c for phase in report["phases"] for c in phase["candidates"])
        found.append(("time", format_seconds(sum(seconds)).removeprefix("about "), _count(trained, "training")))
    return found


def _weights(run: Run) -> dict[str, int]:
    return {name: size for name, size in run.sizes.items() if name.endswith(".safetensors") and name != MASKS}


def _forms(weights: Mapping[str, int]) -> list[int]:
    """Bytes of the dense and of the compact form, as far as they are there."""
    forms = [sum(s for n, s in weights.items() if (".sparse" in n) is compact) for compact in (False, True)]
    return [size for size in forms if size]


def _final_sparsity(phase: Mapping[str, Any]) -> float:
    soup = phase["soup"]
    return soup["sparsity"] if soup else sparsity_of(phase)


def _signed(run: Run, difference: float) -> str:
    return f"{difference:+.{decimals(run.scores)}f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


# ---- Models and soups --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model in the table: kind is `dense`, `candidate`, `mean`, `best` or `soup`."""

    kind: str
    model: str
    sparsity: str
    score: str
    test: str
    note: str = ""
    details: str = ""


def dense_row(run: Run) -> Row:
    """The dense model."""
    return Row(
        "dense",
        "dense",
        "0.00",
        run.score(run.report["dense"].get(run.report["metric"])),
        run.score(run.tests.get("dense")),
    )


def rows_of_phase(run: Run, phase: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Candidates, and what was made of them."""
    rows = phase_rows(phase, run.tests)
    count = len(phase["candidates"])
    candidates = [
        Row("candidate", c["name"], f"{s:.2f}", run.score(x), run.score(t), _note(c, phase), describe(c["overrides"]))
        for c, (_, _, s, x, t) in zip(phase["candidates"], rows, strict=False)
    ]
    made = [
        Row(label.split()[0], _shortened(label, phase), f"{s:.2f}", run.score(x), run.score(t))
        for _, label, s, x, t in rows[count:]
        if x is not None
    ]
    return candidates, made


def _shortened(label: str, phase: Mapping[str, Any]) -> str:
    count = len(phase["soup"]["ingredients"]) if label.startswith("soup") else 0
    return f"soup of {count} candidates" if count > OPEN_ROWS else label


def comparisons(run: Run) -> list[str]:
    """Whether the soup's test score differs from another by more than noise, in sentences; none where it is not known."""
    found = (run.lineage or {}).get("comparisons", ())
    return [describe_comparison(comparison, run.report["metric"]) for comparison in found]


def _note(candidate: Mapping[str, Any], phase: Mapping[str, Any]) -> str:
    if candidate["failure"]:
        return f"failed, left out: {candidate['failure']}"
    if candidate.get("going_on"):
        return candidate["going_on"]
    return "in the soup" if phase["soup"] and candidate["name"] in phase["soup"]["ingredients"] else ""


@dataclass(frozen=True)
class Tried:
    """An average that was tried: gain over the best before it, in units of the metric, positive where it is better."""

    what: str
    score: str
    gain: str
    standard_error: str
    sure: str
    accepted: bool


def trials(run: Run, soup: Mapping[str, Any]) -> list[Tried]:
    """What was tried, in order."""
    best, rows, digits = None, [], decimals(run.scores)
    before: list[str] = []
    for trial in soup["trials"]:
        names = trial["ingredients"]
        grown = before and names[: len(before)] == before
        what = " + ".join(short(name) for name in names[len(before) :]) if grown else ", ".join(short(n) for n in names)
        rows.append(
            Tried(
                f"+ {what}" if grown else what,
                run.score(trial["score"]),
                "" if best is None else _signed(run, run.sign * (trial["score"] - best)),
                "" if trial.get("standard_error") is None else f"{trial['standard_error']:.{digits}f}",
                "" if trial.get("sure") is None else f"{trial['sure']:.0%}",
                trial["accepted"],
            )
        )
        if trial["accepted"]:
            best, before = trial["score"], names
    return rows


def verdict(run: Run, phase: Mapping[str, Any]) -> str:
    """Why the soup is what it is."""
    soup, planned = phase["soup"], run.report["settings"]["plan"][phase["number"] - 1]
    method = run.arguments.get("soup_method", "")
    usable = sum(not c["failure"] for c in phase["candidates"])
    if len(phase["candidates"]) == 1:
        return "One candidate: nothing to average."
    if soup is None:
        return (
            "Not merged: the candidates go on, each for itself." if phase["seconds"] is not None else "Not merged yet."
        )
    if planned["merge"] != "soup":
        end = ", then pruned again" if planned["merge"] == "reprune" else ""
        return f"All {usable} candidates were averaged{end}: nothing was tried."
    if not soup["trials"]:
        return (
            f"{method}: {len(soup['ingredients'])} of {usable} were averaged, nothing was tried on the evaluation set."
        )
    if method != "greedy":
        return f"{method}: {_count(len(soup['trials']), 'average was', 'averages were')} tried."
    left = [trial["ingredients"][-1] for trial in soup["trials"] if not trial["accepted"]]
    text = f"Best first, each candidate once: {len(soup['ingredients'])} of {usable} stayed in."
    text += " It ended because no candidate was left"
    if not left:
        return f"{text}; each made the average at least as good."
    demand = run.arguments.get("soup_min_gain")
    rule = f"did not gain {demand:g} standard error{'s' * (demand != 1)}" if demand else "made the average worse"
    names = ", ".join(short(name) for name in left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    return f"{text}; {names} {rule}."


def short(name: str) -> str:
    """`3` of `candidate-3`."""
    return name.removeprefix("candidate-")


# ---- Layers, pairs of candidates ---------------------------------------------------------------------------------------


def layer_rows(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """Tensor -> fraction removed in each phase: of the soup, where it has masks, else of the parent."""
    columns = [
        (phase["soup"] or {}).get("sparsity_per_tensor") or phase["parent"]["sparsity_per_tensor"] for phase in phases
    ]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [column.get(name) for column in columns]) for name in names]


def shades(values: Iterable[float | None]) -> tuple[float, float]:
    """Values of the palest and of the strongest shade; where all are nearly alike they are to look alike."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return (low, high) if high - low >= 0.05 * abs(high) and high > low else (min(low, 0.0), max(high, 0.0) or 1.0)


@dataclass(frozen=True)
class Matrix:
    """A value for each two candidates; NaN where none is known, as between a candidate and itself."""

    title: str
    what: str
    labels: list[str]
    rows: list[list[float]]

    @property
    def shades(self) -> tuple[float, float]:
        return shades(value for row in self.rows for value in row)


def matrices(phase: Mapping[str, Any]) -> Iterator[Matrix]:
    """How the candidates of a phase that did not fail lie to each other, as far as it was measured."""
    names = [c["name"] for c in phase["candidates"] if not c["failure"] and c.get("score") is not None]
    diagnostics, labels = phase["diagnostics"], [short(name) for name in names]
    geometry = diagnostics.get("geometry") or {}
    midpoints = [(m["between"], m["barrier"]) for m in diagnostics.get("midpoints", [])]
    overlaps = [(m["between"], m["overlap"]) for m in diagnostics.get("mask_overlaps", [])]
    barrier = "loss half way between two, above the mean of both"
    for title, what, table in (
        ("Distances", "L2 between weights", geometry.get("distances")),
        ("Angles", "degrees between weights", geometry.get("angles")),
        ("Barriers", barrier, _table(midpoints, names)),
        ("Mask overlap", "intersection over union of kept weights", _table(overlaps, names)),
    ):
        if table and len(table) == len(names) > 1:
            yield Matrix(
                title, what, labels, [[_known(v, i == j) for j, v in enumerate(r)] for i, r in enumerate(table)]
            )


def _known(value: float | None, is_itself: bool) -> float:
    return math.nan if is_itself or value is None else value


def _table(pairs: Sequence[tuple[Sequence[str], float]], names: Sequence[str]) -> list[list[float | None]] | None:
    table = {frozenset(pair): value for pair, value in pairs}
    return [[table.get(frozenset((a, b))) for b in names] for a in names] if table else None


# ---- Settings ----------------------------------------------------------------------------------------------------------


def settings_rows(arguments: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Those that are looked at first, and the others."""
    first = [(key, shown(arguments[key])) for key in SHOWN if arguments.get(key) not in (None, -1)]
    names = {key for key, _ in first}
    return first, [(key, shown(value)) for key, value in arguments.items() if key not in names]


def shown(value: Any) -> str:
    """A setting as it would be written."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(v)}" for key, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Compared:
    """A run in the table of several; None where it is not known."""

    name: str
    dense: float | None
    what: str
    score: float | None
    test: float | None
    sparsity: float | None
    size: int | None
    seconds: float | None


def compared(run: Run) -> Compared:
    """What a run ended with."""
    phases, (what, score, test) = run.report["phases"], run.final()
    weights = _weights(run)
    seconds = [phase["seconds"] for phase in phases if phase["seconds"] is not None]
    return Compared(
        run.name,
        run.report["dense"].get(run.report["metric"]),
        what,
        score,
        test,
        _final_sparsity(phases[-1]) if phases else None,
        min(_forms(weights)) if weights else None,
        sum(seconds) if seconds else None,
    )


def different_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ: name -> the value of each."""
    tables = [
        _flat(
            {k: run.report["settings"].get(k, {}) for k in ("arguments", "model", "num_examples", "data", "versions")}
        )
        for run in runs
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name.removeprefix("arguments."), [table.get(name, "") for table in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: shown(value)}
