"""
Many runs side by side, as the papers print them: results of cells -> table, CSV, figure.

A cell is one run of one row: a model, a method, a sparsity, a number of candidates and a seed. Its result is a dict (what
`recipes/compare.py` writes as `result.json`): `model`, `method`, `sparsity`, `num_candidates` (`None` for methods that do
not depend on it), `seed`; then either `error`, or `metric`, `greater_is_better`, `validation`, `test`, `actual_sparsity`,
`epochs`, `steps`, `seconds`, `companions` (name -> `validation`, `test`).
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tabulate import tabulate

Record = Mapping[str, Any]

DENSE, ENSEMBLE = "dense", "prediction ensemble"
COMPANIONS: tuple[str, ...] = ("best candidate", "mean candidate", ENSEMBLE)
"""Rows that come along with one method: its candidates of the last phase, one by one and as an ensemble."""
REFERENCES = (DENSE, ENSEMBLE)
"""Rows that do not compete: not sparse, or several models at inference."""
NEAR = 1e-3
"""A model that is less sparse than the goal by more than this does not compete."""
COLUMNS: tuple[str, ...] = (
    "model",
    "row",
    "sparsity",
    "num_candidates",
    "seed",
    "status",
    "metric",
    "greater_is_better",
    "validation",
    "test",
    "actual_sparsity",
    "epochs",
    "steps",
    "seconds",
)


@dataclass(frozen=True)
class Grid:
    """
    What is compared.

    Attributes:
        models, methods (`tuple[str, ...]`): Labels, in the order of the table.
        sparsities (`tuple[float, ...]`): In `[0, 1)`.
        num_candidates (`tuple[int, ...]`): Numbers of candidates, `m` in the papers.
        seeds (`tuple[int, ...]`): Every cell is repeated with each of them.
        companions (`str`, *optional*): The method whose candidates give the rows `COMPANIONS`, and the dense model.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    num_candidates: tuple[int, ...]
    seeds: tuple[int, ...]
    companions: str | None = None

    @property
    def rows(self) -> list[str]:
        """The dense model, then the methods, one of them followed by its companions."""
        rows = [DENSE] if self.companions in self.methods else []
        for method in self.methods:
            rows += [method, *COMPANIONS] if method == self.companions else [method]
        return rows

    @property
    def columns(self) -> list[tuple[float, int]]:
        return list(product(self.sparsities, self.num_candidates))


@dataclass(frozen=True)
class Entry:
    """
    One place in the table.

    Attributes:
        mean (`float`, *optional*): Over the seeds that are done.
        std (`float`, *optional*): Sample standard deviation; `None` for a single seed.
        count, failed, seeds (`int`): Seeds that are done, that failed, and that were asked for.
        sparsity (`float`, *optional*): The true one, where it misses the goal.
        competes (`bool`): Whether it may be the best of its column.
        best (`bool`): Whether it is the best of its column.
    """

    mean: float | None = None
    std: float | None = None
    count: int = 0
    failed: int = 0
    seeds: int = 1
    sparsity: float | None = None
    competes: bool = False
    best: bool = False

    def text(self, digits: int, mark: str = "{}") -> str:
        """`93.10 ± 0.25`, and what is missing; `mark` decorates the best."""
        if self.mean is None:
            return "failed" if self.failed else "-"
        text = f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")
        text = mark.format(text) if self.best else text
        notes = [] if self.sparsity is None else [f"at {self.sparsity:.1%}"]
        if self.count < self.seeds:
            notes.append(f"{self.count} of {self.seeds} seeds" + (f", {self.failed} failed" if self.failed else ""))
        return text + "".join(f" ({note})" for note in notes)


@dataclass(frozen=True)
class Table:
    """
    The table of one model on one split.

    Attributes:
        model, split, metric (`str`): `split` is `"test"` or `"validation"`.
        greater_is_better (`bool`): Direction of the metric.
        num_candidates (`tuple[int, ...]`): As in the grid, as far as something is there.
        columns (`list[tuple[float, int]]`): (sparsity, number of candidates).
        entries (`dict[str, list[Entry]]`): Row -> an entry per column.
        epochs, seconds (`dict[str, list[float | None]]`): Row -> for every number of candidates, the mean over sparsities
            and seeds.
    """

    model: str
    split: str
    metric: str
    greater_is_better: bool
    num_candidates: tuple[int, ...]
    columns: list[tuple[float, int]]
    entries: dict[str, list[Entry]]
    epochs: dict[str, list[float | None]]
    seconds: dict[str, list[float | None]]


# ---- Aggregation -------------------------------------------------------------------------------------------------------


def long_form(results: Sequence[Record], grid: Grid) -> list[dict[str, Any]]:
    """One record per cell, companion and dense model, with the keys `COLUMNS`."""
    records, dense_seen = [], set()
    for result in results:
        own = {key: result.get(key) for key in COLUMNS}
        own |= {"row": result["method"], "status": "failed" if "error" in result else "done"}
        records.append(own)
        if result["method"] != grid.companions:
            continue
        scores = result.get("companions", {})
        for name in COMPANIONS:
            if name in scores or own["status"] == "failed":
                records.append({**own, "row": name, **_both(scores.get(name, {}))})
        key = (result["model"], result["seed"])
        if DENSE in scores and key not in dense_seen:
            dense_seen.add(key)
            nothing = dict.fromkeys(("num_candidates", "epochs", "steps", "seconds"))
            dense = {"row": DENSE, "sparsity": None, "actual_sparsity": 0.0, **nothing, **_both(scores[DENSE])}
            records.append({**own, **dense})
    return records


def _both(scores: Record) -> dict[str, Any]:
    return {"validation": scores.get("validation"), "test": scores.get("test")}


def make_tables(records: Sequence[Record], grid: Grid, split: str = "test") -> list[Table]:
    """
    A table for every model of which a cell is done.

    Columns (a sparsity, a number of candidates) of which nothing is there are left out; rows stay. Accuracies are given in
    per cent.

    Args:
        records (`Sequence[Mapping]`): From [`long_form`].
        split (`str`, *optional*, defaults to `"test"`): `"test"` or `"validation"`.
    """
    tables = []
    for model in grid.models:
        mine = [r for r in records if r["model"] == model and r["seed"] in grid.seeds]
        scored = [r for r in mine if r["status"] == "done" and r[split] is not None]
        if scored:
            tables.append(_make_table(model, _in_percent(mine, split), _shown(mine, grid), split))
    return tables


def _in_percent(records: Sequence[Record], split: str) -> list[Record]:
    """Accuracies between 0 and 1 as the papers give them; other metrics as they are."""
    scored = [r for r in records if r[split] is not None]
    if not all(r["metric"].endswith("accuracy") and 0 <= r[split] <= 1 for r in scored):
        return list(records)
    return [
        {**r, split: 100 * r[split], "metric": f"{r['metric']} in %"} if r[split] is not None else r for r in records
    ]


def _shown(records: Sequence[Record], grid: Grid) -> Grid:
    sparsities = tuple(s for s in grid.sparsities if any(r["sparsity"] == s for r in records))
    numbers = tuple(m for m in grid.num_candidates if any(r["num_candidates"] == m for r in records))
    # Without a single row that depends on the number of candidates, one column says it all.
    return replace(grid, sparsities=sparsities, num_candidates=numbers or grid.num_candidates[:1])


def _make_table(model: str, records: list[Record], grid: Grid, split: str) -> Table:
    by_row = {row: [r for r in records if r["row"] == row] for row in grid.rows}
    entries = {
        row: [_entry(_in_column(by_row[row], m, s), split, s, len(grid.seeds)) for s, m in grid.columns]
        for row in grid.rows
    }
    metric, greater = next((r["metric"], r["greater_is_better"]) for r in records if r[split] is not None)
    for column in range(len(grid.columns)):
        _mark_best_(entries, column, greater)
    epochs, seconds = (
        {row: [_mean(_in_column(by_row[row], m), key) for m in grid.num_candidates] for row in grid.rows}
        for key in ("epochs", "seconds")
    )
    return Table(model, split, metric, greater, grid.num_candidates, grid.columns, entries, epochs, seconds)


def _in_column(records: Sequence[Record], number: int, sparsity: float | None = None) -> list[Record]:
    """Records that belong in a column: what does not depend on sparsity or number belongs in all of them."""
    return [
        r
        for r in records
        if r["num_candidates"] in (None, number) and (sparsity is None or r["sparsity"] in (None, sparsity))
    ]


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = [r[key] for r in records if r[key] is not None]
    return statistics.fmean(values) if values else None


def _entry(records: Sequence[Record], split: str, goal: float, seeds: int) -> Entry:
    done = [r for r in records if r["status"] == "done" and r[split] is not None]
    failed = sum(r["status"] == "failed" for r in records)
    if not done:
        return Entry(failed=failed, seeds=seeds)
    mean, std = mean_and_std([r[split] for r in done])
    row, sparsity = done[0]["row"], statistics.fmean(r["actual_sparsity"] for r in done)
    missed = sparsity if row != DENSE and abs(sparsity - goal) > NEAR else None
    return Entry(mean, std, len(done), failed, seeds, missed, row not in REFERENCES and sparsity >= goal - NEAR)


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, the latter `None` for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _mark_best_(entries: dict[str, list[Entry]], column: int, greater: bool) -> None:
    """Mark the best single model of a column, among those with the most seeds done; equal means share the mark."""
    rivals = {row: line[column] for row, line in entries.items() if line[column].competes}
    count = max((entry.count for entry in rivals.values()), default=0)
    means = [entry.mean for entry in rivals.values() if entry.count == count and entry.mean is not None]
    best = (max if greater else min)(means, default=None)
    for row, entry in rivals.items():
        if entry.count == count and entry.mean == best:
            entries[row][column] = replace(entry, best=True)


# ---- What a person reads -----------------------------------------------------------------------------------------------


def format_table(table: Table, style: str = "simple") -> str:
    """
    The table as text: rows are methods, columns sparsity x number of candidates, then what a row cost.

    Args:
        style (`str`, *optional*, defaults to `"simple"`): A format of `tabulate`. In `"github"` the best single model of
            each column is bold, elsewhere it carries a star.
    """
    # Percentages and BLEU with two decimals, losses and fractions with four.
    means = [entry.mean for line in table.entries.values() for entry in line if entry.mean is not None]
    digits, mark = 2 if max(means, default=0.0) >= 10 else 4, "**{}**" if style == "github" else "{} *"
    many = len(table.num_candidates) > 1
    numbers = "/".join(map(str, table.num_candidates))
    headers = [f"{s * 100:g} %" + (f", m = {m}" if many else "") for s, m in table.columns]
    costs = [f"epochs (m = {numbers})" if many else "epochs", f"time (m = {numbers})" if many else "time"]
    rows = [
        [row, *(entry.text(digits, mark) for entry in line), _series(table.epochs[row]), _time(table.seconds[row])]
        for row, line in table.entries.items()
    ]
    return tabulate(rows, headers=["method", *headers, *costs], tablefmt=style, disable_numparse=True)


def caption(table: Table, seeds: int) -> str:
    """One line that says what the numbers are."""
    direction = "higher" if table.greater_is_better else "lower"
    m = "".join(f", m = {number}" for number in table.num_candidates if len(table.num_candidates) == 1)
    spread = f", mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    return f"{table.model}: {table.split} {table.metric} ({direction} is better){spread}{m}"


def _series(values: Sequence[float | None]) -> str:
    """`12/20`, or `4` where all are the same."""
    texts = ["-" if value is None else f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


def _time(seconds: Sequence[float | None]) -> str:
    longest = max((s for s in seconds if s is not None), default=0.0)
    unit, size = next(((u, n) for u, n in (("h", 3600), ("min", 60)) if longest >= 2 * n), ("s", 1))
    texts = ["-" if s is None else f"{s / size:.3g}" for s in seconds]
    text = texts[0] if len(set(texts)) == 1 else "/".join(texts)
    return text if text == "-" else f"{text} {unit}"


def format_csv(records: Sequence[Record]) -> str:
    """Long form: one line per cell, companion and dense model."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
