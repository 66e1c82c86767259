"""Aggregation of a comparison, with numbers that can be checked by hand."""

import csv
import io
import math
import sys

import pytest

from sms_hf.compare.figure import draw_figure
from sms_hf.compare.tables import COLUMNS, Grid, caption, format_csv, format_table, long_form, make_tables, mean_and_std

pytestmark = pytest.mark.figures
GRID = Grid(("ViT",), ("IMP", "SMS"), (0.9,), (3,), (0, 1, 2), companions="SMS")


def result(method="IMP", seed=0, test=90.0, **changes):
    own = {
        "model": "ViT",
        "method": method,
        "sparsity": 0.9,
        "num_candidates": None if method == "IMP" else 3,
        "seed": seed,
        "metric": "bleu",
        "greater_is_better": True,
        "validation": None if test is None else test + 1.0,
        "test": test,
        "actual_sparsity": 0.9,
        "epochs": 2.0,
        "steps": 20,
        "seconds": 30.0,
        "companions": {},
    }
    return own | changes


def companions(best, mean, ensemble, dense):
    scores = {"best candidate": best, "mean candidate": mean, "prediction ensemble": ensemble, "dense": dense}
    return {name: {"validation": score + 1.0, "test": score} for name, score in scores.items()}


def table(results, grid=GRID, split="test"):
    (only,) = make_tables(long_form(results, grid), grid, split)
    return only


def texts(table, mark="[{}]"):
    return {row: [entry.text(2, mark) for entry in line] for row, line in table.entries.items()}


def test_mean_and_sample_standard_deviation():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([90.0, 92.0]) == (91.0, pytest.approx(math.sqrt(2)))
    assert mean_and_std([5.0]) == (5.0, None)


def test_rows_in_order_with_companions_and_the_best_in_bold():
    results = [result(seed=i, test=90.0 + i) for i in range(3)]
    results += [
        result("SMS", i, 92.0 + i, companions=companions(91.0 + i, 90.5 + i, 95.0 + i, 97.0), epochs=6.0, seconds=90.0)
        for i in range(3)
    ]
    done = table(results)
    assert texts(done) == {
        "dense": ["97.00 ± 0.00"],
        "IMP": ["91.00 ± 1.00"],
        "SMS": ["[93.00 ± 1.00]"],
        "best candidate": ["92.00 ± 1.00"],
        "mean candidate": ["91.50 ± 1.00"],
        "prediction ensemble": ["96.00 ± 1.00"],
    }
    assert done.epochs == {
        "dense": [None],
        "IMP": [2.0],
        "SMS": [6.0],
        "best candidate": [6.0],
        "mean candidate": [6.0],
        "prediction ensemble": [6.0],
    }
    assert done.seconds["SMS"] == [90.0]
    assert texts(table(results, split="validation"))["SMS"] == ["[94.00 ± 1.00]"]
    assert format_table(done, "github").splitlines() == [
        "| method              | 90 %             | epochs   | time   |",
        "|---------------------|------------------|----------|--------|",
        "| dense               | 97.00 ± 0.00     | -        | -      |",
        "| IMP                 | 91.00 ± 1.00     | 2        | 30 s   |",
        "| SMS                 | **93.00 ± 1.00** | 6        | 90 s   |",
        "| best candidate      | 92.00 ± 1.00     | 6        | 90 s   |",
        "| mean candidate      | 91.50 ± 1.00     | 6        | 90 s   |",
        "| prediction ensemble | 96.00 ± 1.00     | 6        | 90 s   |",
    ]
    assert caption(done, 3) == (
        "ViT: test bleu (higher is better), mean ± sample standard deviation over 3 seeds, m = 3"
    )


def test_a_loss_is_better_when_it_is_lower():
    loss = {"metric": "loss", "greater_is_better": False}
    done = table([result(test=1.5, **loss), result("SMS", test=1.25, **loss)])
    assert [done.entries[row][0].best for row in ("IMP", "SMS")] == [False, True]
    assert "1.2500 *" in format_table(done)
    assert "(lower is better), one seed" in caption(done, 1)


def test_what_does_not_depend_on_m_stands_in_all_columns():
    grid = Grid(("ViT",), ("IMP", "SMS"), (0.9, 0.98), (3, 5), (0,))
    results = [result(test=91.0), result(test=81.0, sparsity=0.98, actual_sparsity=0.98)]
    results += [result("SMS", test=90.0, num_candidates=3), result("SMS", test=92.0, num_candidates=5, seconds=400.0)]
    done = table(results, grid)
    assert done.columns == [(0.9, 3), (0.9, 5), (0.98, 3), (0.98, 5)]
    assert texts(done) == {"IMP": ["[91.00]", "91.00", "[81.00]", "[81.00]"], "SMS": ["90.00", "[92.00]", "-", "-"]}
    head, _, *rows = format_table(done).splitlines()
    assert [name in head for name in ("90 %, m = 3", "98 %, m = 5", "epochs (m = 3/5)", "time (m = 3/5)")] == [True] * 4
    assert rows[1].split()[-2:] == ["0.5/6.67", "min"]


def test_missing_partial_and_failed():
    results = [result(test=90.0), result(seed=1, test=92.0)]
    failure = {"model": "ViT", "method": "SMS", "sparsity": 0.9, "num_candidates": 3, "error": "out of memory"}
    found = texts(table([*results, failure | {"seed": 0}]))
    assert found["IMP"] == ["[91.00 ± 1.41] (2 of 3 seeds)"]
    assert found["SMS"] == found["mean candidate"] == ["failed"]
    assert found["dense"] == ["-"]
    found = texts(table([*results, failure | {"seed": 0}, result("SMS", seed=1, test=99.0)]))
    assert found["SMS"] == ["99.00 (1 of 3 seeds, 1 failed)"], "fewer seeds than another: no rival"
    assert make_tables(long_form([failure | {"seed": 0}], GRID), GRID) == []
    assert make_tables(long_form([result(test=90.0) | {"test": None}], GRID), GRID) == [], "no test set"


def test_a_model_that_is_denser_than_the_goal_does_not_compete():
    done = table([result(test=90.0), result("SMS", test=99.0, actual_sparsity=0.842)])
    assert texts(done)["IMP"] == ["[90.00] (1 of 3 seeds)"]
    assert texts(done)["SMS"] == ["99.00 (at 84.2%) (1 of 3 seeds)"]


def test_accuracies_are_given_in_per_cent():
    accuracy = {"metric": "accuracy", "seed": 0}
    done = table([result(test=0.9125, **accuracy), result(test=None, validation=0.5, **accuracy | {"seed": 1})])
    assert texts(done)["IMP"] == ["[91.25] (1 of 3 seeds)"]
    assert "test accuracy in % (higher is better)" in caption(done, 3)


def test_equal_means_share_the_mark():
    assert [line[0].best for line in table([result(), result("SMS")]).entries.values()] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]


def test_columns_of_which_nothing_is_there_are_left_out():
    grid = Grid(("ViT", "ResNet"), ("IMP",), (0.9, 0.98), (3, 5), (0,))
    (only,) = make_tables(long_form([result()], grid), grid)
    assert (only.model, only.columns) == ("ViT", [(0.9, 3)])


def test_csv_is_long():
    scores = companions(91.0, 90.5, 95.0, 97.0)
    results = [result(), *(result("SMS", test=92.0, num_candidates=m, companions=scores) for m in (3, 5))]
    lines = list(csv.DictReader(io.StringIO(format_csv(long_form(results, GRID)))))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["row"], line["num_candidates"], line["test"]) for line in lines] == [
        ("IMP", "", "90.0"),
        ("SMS", "3", "92.0"),
        ("best candidate", "3", "91.0"),
        ("mean candidate", "3", "90.5"),
        ("prediction ensemble", "3", "95.0"),
        ("dense", "", "97.0"),
        ("SMS", "5", "92.0"),
        ("best candidate", "5", "91.0"),
        ("mean candidate", "5", "90.5"),
        ("prediction ensemble", "5", "95.0"),
    ]
    assert (lines[5]["sparsity"], lines[5]["epochs"]) == ("", "")


def test_the_figure_has_a_panel_per_model_and_m_and_a_name_for_every_line():
    pytest.importorskip("matplotlib")
    grid = Grid(("ViT", "ResNet"), ("Pruned", "IMP", "SMS"), (0.9, 0.98), (3, 5), (0, 1), companions="SMS")
    results = []
    for model in grid.models:
        for sparsity in grid.sparsities:
            for seed in grid.seeds:
                where = {"model": model, "sparsity": sparsity, "actual_sparsity": sparsity, "seed": seed}
                results += [result(test=90.0 + seed, **where), result("Pruned", test=10.0, epochs=0.0, **where)]
                results += [
                    result("SMS", test=92.0, num_candidates=m, companions=companions(91, 90.5, 95, 97), **where)
                    for m in (3, 5)
                ]
    figure = draw_figure(make_tables(long_form(results, grid), grid))
    assert [axis.get_title() for axis in figure.axes] == [
        "ViT, m = 3",
        "ResNet, m = 3",
        "ViT, m = 5",
        "ResNet, m = 5",
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "dense",
        "Pruned (off the scale)",
        "IMP",
        "SMS",
        "best candidate",
        "mean candidate",
        "prediction ensemble",
    ]
    low, high = figure.axes[0].get_ylim()
    assert 80.0 < low < 90.0 < 97.0 < high, "what was not retrained does not set the scale"


def test_the_figure_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install sms_hf\[report\]"):
        draw_figure([table([result()])])
