"""The rows of docs/extending.md, added as they stand there and used in runs."""

import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file

from sms_hf import CRITERIA, METHODS, find_prunable, prune
from sms_hf.soup import SOUP_METHODS, Pool
from sms_hf.sparsity.allocation import SCOPES

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
TABLES = (CRITERIA, SCOPES, SOUP_METHODS, METHODS)


@pytest.fixture(autouse=True)
def rows():
    """What the page defines; its rows are taken away again."""
    before, names = [dict(table) for table in TABLES], {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)), "extending.md", "exec"), names)
    yield names
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_criterion_and_an_allocation(rows):
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0]]))
        model[1].weight.copy_(torch.tensor([[0.5], [3.0]]))
    # The loss is the sum of outputs: gradients are (3.5 x_1, 3.5 x_2) and (x_1 + x_2) twice.
    batches = [torch.tensor([[2.0, -1.0]])]
    masks = prune(model, 0.25, criterion="snip", calibration=lambda m: (m(batch).sum() for batch in batches))
    assert [mask.flatten().tolist() for mask in masks.values()] == [[True, True], [False, True]]
    late = prune(tiny_t5(), 0.25, scope="late")
    sparsities = list(late.sparsity_per_tensor().values())
    assert sum(sparsities[: len(sparsities) // 2]) == 0
    assert late.num_weights - late.num_kept == round(0.25 * late.num_weights)


def test_a_soup_with_weights(make_trainer, rows):
    trainer = make_trainer({"soup_method": "softmax", "num_phases": 1, "keep_candidates": True})
    trainer.train()
    phase = trainer.report["phases"][0]
    scores = {c["name"]: c["score"] for c in phase["candidates"]}
    weights, _ = rows["softmax_ingredients"](Pool(scores, float, greater_is_better=False))
    assert phase["soup"]["ingredients"] == list(weights)
    assert phase["soup"]["weights"] == list(weights.values())
    assert len(set(weights.values())) == 2
    folder = Path(trainer.args.output_dir)
    parts = [load_file(folder / "_run/phase-1" / name / "model.safetensors") for name in weights]
    total = sum(weights.values())
    for name, found in load_file(folder / "model.safetensors").items():
        expected = sum(w * part[name].double() for w, part in zip(weights.values(), parts, strict=True)) / total
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)


def test_a_method_and_a_criterion_in_a_run(make_trainer):
    trainer = make_trainer({"pruning_method": "two-bites", "pruning_criterion": "snip", "calibration_batches": 1})
    trainer.train()
    assert [phase["parent"]["sparsity"] for phase in trainer.report["phases"]] == [0.375, 0.75]
    assert [len(phase["candidates"]) for phase in trainer.report["phases"]] == [1, 2]
    assert trainer.report["phases"][0]["candidates"][0]["steps"] == 0
    assert trainer.masks.num_kept == 0.25 * find_prunable(trainer.model).num_weights


def test_a_metric(make_trainer, rows):
    trainer = make_trainer(
        {"metric_for_best_model": "exact_match", "greater_is_better": True, "num_phases": 1},
        compute_metrics=rows["exact_match"],
    )
    trainer.train()
    assert trainer.report["metric"] == "exact_match"
    assert 0.0 <= trainer.report["dense"]["exact_match"] <= 1.0


def test_every_file_and_test_that_the_page_names_is_there():
    root = Path(__file__).parents[1]
    named = re.findall(r"`((?:sms_hf|tests|recipes)/[\w/.]+)`", PAGE)
    assert len(named) > 12
    assert [name for name in named if not (root / name).exists()] == []
    tests = re.findall(r"`(tests/[\w/]+\.py)`,\s+`(test_\w+)`", PAGE)
    assert len(tests) >= 3
    for path, name in tests:
        assert f"def {name}(" in (root / path).read_text(encoding="utf-8")
