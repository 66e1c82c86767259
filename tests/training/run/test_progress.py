"""The lines that a run prints."""

import pytest

from sms_hf.training.plan.candidates import Phase
from sms_hf.training.run.progress import parent_line, soup_lines

PARENT = {
    "sparsity": 0.75,
    "num_kept": 1250,
    "num_weights": 5000,
    "model_sparsity": 0.5,
    "sparsity_per_tensor": {"a.weight": 0.5, "b.weight": 1.0},
    "skipped_by_pattern": {},
}
REMOVED = "phase 2 of 3: 75.00% of the prunable weights removed, 1,250 of 5,000 kept (50.00% of all weights removed)"


def test_a_layer_that_lost_all_its_weights_is_named():
    line = parent_line(Phase(2, 0.75, ()), 3, PARENT)
    assert line == f"{REMOVED}; EMPTIED: b.weight, pruning_scope 'uniform' or max_sparsity_per_layer prevents that"
    whole = {**PARENT, "sparsity_per_tensor": {"a.weight": 0.5}}
    assert parent_line(Phase(2, 0.75, ()), 3, whole) == REMOVED


def test_tensors_that_a_pattern_left_whole_are_named():
    skipped = {**PARENT, "sparsity_per_tensor": {}, "skipped_by_pattern": {"c.weight": "its input size 3 is not ..."}}
    assert parent_line(Phase(2, 0.75, ()), 3, skipped) == f"{REMOVED}; left whole by the pattern: c.weight"


@pytest.mark.parametrize(
    ("feedback", "words"), [(True, "the dense weights live on behind the mask"), (False, "stay gone")]
)
def test_pruning_while_training(feedback, words):
    phase = Phase(1, 0.0, (), events=((0.5, 0.5), (0.9, 0.9)), feedback=feedback)
    line = parent_line(phase, 1, {**PARENT, "sparsity": 0.0})
    assert line.startswith("phase 1 of 1: pruned to 90.00% while it is trained")
    assert line.endswith(words)


def test_the_end_of_a_phase_with_and_without_a_soup():
    phase = {
        "number": 1,
        "candidates": [{}, {}],
        "mean_score": 1.25,
        "best_score": 1.5,
        "soup": None,
        "diagnostics": {},
    }
    assert list(soup_lines(phase, "bleu")) == ["phase 1: mean candidate 1.25, best candidate 1.5 (bleu)"]
    soup = {"ingredients": ["candidate-1", "candidate-2"], "score": 2.0, "trials": []}
    lines = soup_lines({**phase, "soup": soup, "diagnostics": {"warnings": ["mind the gap"]}}, "bleu")
    assert list(lines) == [
        "phase 1: mean candidate 1.25, best candidate 1.5, soup of 2 2 (bleu)",
        "phase 1: mind the gap",
    ]
    assert list(soup_lines({**phase, "candidates": [{}], "soup": soup}, "bleu")) == ["phase 1: bleu 1.5"]
    trials = [
        {"accepted": True, "sure": None},
        {"accepted": True, "sure": 0.964},
        {"accepted": False, "sure": 0.7},
    ]
    (line,) = soup_lines({**phase, "soup": {**soup, "trials": trials}}, "bleu")
    assert line.endswith("soup of 2 2 (bleu); what was added would be again in 96% of resampled evaluation sets")
