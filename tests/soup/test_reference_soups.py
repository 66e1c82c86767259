"""Soups for reference: Model Stock, learned weights, Lottery Pools."""

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification, default_data_collator

from sms_hf.soup import PARENT, Pool, average_checkpoints
from sms_hf.soup.learned import learned_ingredients, learned_layer_ingredients
from sms_hf.soup.lottery_pools import lottery_pool_ingredients
from sms_hf.soup.model_stock import model_stock_ingredients, share_of_mean, shares_of_mean
from sms_hf.sparsity.masks import Masks


def folder(path, **tensors):
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, path / "model.safetensors")
    return path


# --- averages by tensor ---


def test_a_weight_may_differ_by_tensor(tmp_path):
    folders = [folder(tmp_path / "a", x=[1.0, 2.0], y=[1.0]), folder(tmp_path / "b", x=[3.0, 6.0], y=[2.0])]
    average_checkpoints(folders, tmp_path / "out", [{"x": 0.75, "y": 0.0}, {"x": 0.25, "y": 1.0}])
    found = load_file(tmp_path / "out/model.safetensors")
    assert (found["x"].tolist(), found["y"].tolist()) == ([1.5, 3.0], [2.0])
    average_checkpoints(folders, tmp_path / "mixed", [1.0, {"x": 3.0, "y": 0.0}])
    found = load_file(tmp_path / "mixed/model.safetensors")
    assert (found["x"].tolist(), found["y"].tolist()) == ([2.5, 5.0], [1.0])
    with pytest.raises(ValueError, match="weights by tensor must name every tensor, got none for 'y'"):
        average_checkpoints(folders, tmp_path / "bad", [{"x": 1.0}, {"x": 1.0}])


# --- Model Stock ---


def test_the_share_of_the_mean_by_hand():
    right, up = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    assert share_of_mean([right, up]) == 0.0, "at a right angle there is nothing in common"
    assert share_of_mean([right, 3 * right]) == 1.0
    half = torch.tensor([1.0, math.sqrt(3)]).double()  # 60 degrees: 2 * 0.5 / (1 + 0.5).
    assert share_of_mean([right, half]) == pytest.approx(2 / 3)
    assert share_of_mean([right, -right]) == 0.0
    assert share_of_mean([right, 0 * up]) == share_of_mean([]) == 1.0
    third = torch.tensor([[1, 0, 0], [0.5, math.sqrt(0.75), 0], [0.5, math.sqrt(1 / 12), math.sqrt(2 / 3)]]).double()
    assert share_of_mean(list(third)) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


def test_model_stock_goes_back_to_the_parent_tensor_by_tensor(tmp_path):
    parent = folder(tmp_path / "parent", x=[1.0, 1.0], y=[0.0, 0.0])
    first = folder(tmp_path / "a", x=[2.0, 1.0], y=[1.0, 0.0])
    second = folder(tmp_path / "b", x=[1.0, 2.0], y=[3.0, 0.0])
    assert shares_of_mean([first, second], parent) == {"x": 0.0, "y": 1.0}
    pool = Pool({"a": 0.0, "b": 0.0}, lambda weights: 1 / 0, folders={"a": first, "b": second}, parent=parent)
    weights, trials = model_stock_ingredients(pool)
    assert (list(weights), trials) == (["a", "b", PARENT], [])
    average_checkpoints([first, second, parent], tmp_path / "out", list(weights.values()))
    found = load_file(tmp_path / "out/model.safetensors")
    assert (found["x"].tolist(), found["y"].tolist()) == ([1.0, 1.0], [2.0, 0.0])
    with pytest.raises(ValueError, match="Model Stock needs the parent"):
        model_stock_ingredients(Pool(pool.scores, pool.evaluate, folders=pool.folders))


# --- learned ---


def learnable(tmp_path, targets):
    """Two models x, y = 0 and 1 each; the loss wants certain values of both."""
    folders = {name: folder(tmp_path / name, **{"one.w": [v], "two.w": [v]}) for name, v in (("a", 0.0), ("b", 1.0))}

    def losses(parameters):
        for _ in range(40):
            yield sum((parameters[f"{layer}.w"] - target).square().sum() for layer, target in targets.items())

    return Pool(dict.fromkeys(folders, 0.0), lambda weights: 1 / 0, folders=folders, losses=losses)


def test_weights_are_learned_on_the_loss(tmp_path):
    weights, trials = learned_ingredients(learnable(tmp_path, {"one": 0.7, "two": 0.7}))
    assert weights["b"] == pytest.approx(0.7, abs=0.01)
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    assert trials == []


def test_every_layer_has_weights_of_its_own(tmp_path):
    pool = learnable(tmp_path, {"one": 0.2, "two": 0.9})
    weights, _ = learned_layer_ingredients(pool)
    assert weights["b"]["one.w"] == pytest.approx(0.2, abs=0.02)
    assert weights["b"]["two.w"] == pytest.approx(0.9, abs=0.02)
    assert weights["a"]["one.w"] + weights["b"]["one.w"] == pytest.approx(1.0, abs=1e-12)
    assert learned_ingredients(pool)[0]["b"] == pytest.approx(0.55, abs=0.02), (
        "one weight for both layers is a compromise"
    )


def test_one_candidate_is_its_own_soup(tmp_path):
    only = Pool({"a": 0.0}, lambda weights: 1 / 0, folders={"a": folder(tmp_path / "a", x=[1.0])})
    for method in (learned_ingredients, learned_layer_ingredients, model_stock_ingredients):
        assert method(only) == ({"a": 1.0}, [])


# --- Lottery Pools ---


def test_the_best_coefficient_is_kept_and_only_if_it_helps():
    """A model is a number; the score is best at 0.95. Of 0.8 and 1.5 a share of 0.7 gives 1.01, one of 0.9 gives 0.87."""
    values = {"a": 0.8, "b": 1.5, "c": 5.0}
    asked = []

    def evaluate(weights):
        asked.append(dict(weights))
        return -abs(sum(values[name] * w for name, w in weights.items()) / sum(weights.values()) - 0.95)

    weights, trials = lottery_pool_ingredients(Pool({n: -abs(v - 0.95) for n, v in values.items()}, evaluate))
    assert weights == pytest.approx({"a": 0.7, "b": 0.3})
    assert trials[1].score == pytest.approx(-0.06)
    assert [trial.accepted for trial in trials] == [True, True, False]
    assert len(asked) == 10


# --- in a run ---

ROWS = ("learned", "learned-layers", "model-stock", "lottery-pools")


@pytest.mark.parametrize("method", ROWS)
def test_a_run_with_each_of_them_is_sparse_and_can_be_resumed(make_trainer, tmp_path, method):
    settings = {"soup_method": method, "num_phases": 2}
    trainer = make_trainer({**settings, "output_dir": str(tmp_path / "whole")}, model=tiny_t5())
    trainer.train()
    soup = trainer.report["phases"][-1]["soup"]
    masks = Masks.of(tmp_path / "whole")
    assert masks.sparsity() == pytest.approx(0.75)
    weights = load_file(tmp_path / "whole/model.safetensors")
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert (PARENT in soup["ingredients"]) == (method == "model-stock")
    # Interrupted after its candidates, before its soup.
    make_trainer(settings, model=tiny_t5()).train()
    for path in [tmp_path / "run/_run/phase-2/phase.json", tmp_path / "run/_run/final.json"]:
        path.unlink()
    again = make_trainer(settings, model=tiny_t5())
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert not (tmp_path / "run/_run/phase-2/parent/model.safetensors").exists()


def test_weights_are_learned_on_the_models_own_loss(make_trainer):
    """The learned average is no worse on the data that it was learned on than equal weights."""
    losses = {}
    for method in ("uniform", "learned-layers"):
        trainer = make_trainer({"soup_method": method, "num_phases": 1, "vary": {"learning_rate": [1e-2, 1e-5]}})
        trainer.args.output_dir = f"{trainer.args.output_dir}-{method}"
        trainer.train()
        losses[method] = trainer.report["phases"][0]["soup"]["metrics"]["loss"]
    assert losses["learned-layers"] < losses["uniform"]
    assert Path(trainer.args.output_dir).is_dir()


@pytest.mark.parametrize("method", ["learned", "learned-layers"])
def test_weights_are_learned_for_models_with_batch_norms(make_trainer, method):
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": i % 3} for i in range(12)]
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    torch.manual_seed(0)
    trainer = make_trainer(
        {"soup_method": method, "num_phases": 1, "target_modules": ".*convolution|classifier.1"},
        model=ResNetForImageClassification(config),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=default_data_collator,
    )
    trainer.train()
    weights = trainer.report["phases"][0]["soup"]["ingredients"]
    assert set(weights) == {"candidate-1", "candidate-2"}
