"""The table at the end of a run."""

from sms_hf import format_report


def candidate(number, score, failure=None):
    return {"name": f"candidate-{number}", "overrides": {"seed": 40 + number}, "score": score, "failure": failure}


REPORT = {
    "metric": "bleu",
    "dense": {"bleu": 35.234, "loss": 1.8},
    "phases": [
        {
            "number": 1,
            "parent": {"sparsity": 0.55278},
            "candidates": [candidate(1, 30.0), candidate(2, 31.5), {**candidate(3, None, "its bleu is nan")}],
            "mean_score": 30.75,
            "best_score": 31.5,
            "soup": {"ingredients": ["candidate-2", "candidate-1"], "score": 32.0, "sparsity": 0.55278},
        }
    ],
}


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_literal_table_with_test_scores():
    scores = {"dense": 35.0, "phase-1/candidate-1": 29.0, "phase-1/candidate-2": 31.0, "phase-1/soup": 33.25}
    table = rows(format_report(REPORT, scores, style="github"))
    assert table[0] == ["phase", "model", "sparsity %", "bleu", "test bleu"]
    assert table[2:] == [
        ["dense", "", "0.00", "35.23", "35.00"],
        ["phase-1", "candidate-1 seed=41", "55.28", "30.00", "29.00"],
        ["phase-1", "candidate-2 seed=42", "55.28", "31.50", "31.00"],
        ["phase-1", "candidate-3 seed=43 (failed)", "55.28", "", ""],
        ["phase-1", "mean candidate", "55.28", "30.75", "30.00"],
        ["phase-1", "best candidate (2)", "55.28", "31.50", "31.00"],
        ["phase-1", "soup (candidates 2, 1)", "55.28", "32.00", "33.25"],
    ]


def test_without_test_scores_there_is_no_such_column_and_losses_have_four_digits():
    report = {**REPORT, "metric": "loss", "phases": []}
    table = rows(format_report(report, style="github"))
    assert table == [["phase", "model", "sparsity %", "loss"], table[1], ["dense", "", "0.00", "1.8000"]]


def test_one_candidate_needs_no_mean_and_a_phase_without_soup_has_no_row():
    alone = {**REPORT["phases"][0], "candidates": [candidate(1, 30.0)], "mean_score": 30.0, "best_score": 30.0}
    gradual = {
        **alone,
        "parent": {"sparsity": 0.0},
        "soup": {"ingredients": ["candidate-1"], "score": 30.0, "sparsity": 0.9},
    }
    assert rows(format_report({**REPORT, "phases": [gradual]}, style="github"))[3:] == [
        ["phase-1", "candidate-1 seed=41", "90.00", "30.00"]
    ]
    separate = {**REPORT["phases"][0], "soup": None}
    last = rows(format_report({**REPORT, "phases": [separate]}, style="github"))[-1]
    assert last == ["phase-1", "best candidate (2)", "55.28", "31.50"]
