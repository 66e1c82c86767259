"""Pruning while training: GMP and DPF, by hand and through the trainer."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from sms_hf import Masks, prune
from sms_hf.training.masked.gradual import FEEDBACK_STEPS, GradualPruning


def linear(*weights):
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False))
    model[0].weight.data = torch.tensor([list(weights)])
    return model


def all_kept(model):
    return Masks({"0.weight": torch.ones(model[0].weight.shape, dtype=torch.bool)})


def step(gradual, model, optimizer, masks, gradient, number, num_steps):
    """One optimizer step as the trainer makes it."""
    model[0].weight.grad = torch.tensor([gradient])
    gradual.before_step(model)
    optimizer.step()
    masks = gradual.after_step(model, optimizer, masks, number, num_steps)
    masks.apply_(model)
    return masks


def prune_by_magnitude(model, sparsity, within):
    return prune(model, sparsity, within=within)


def test_feedback_by_hand():
    """Pruned at 50 % from the start: the gradient at the masked weights moves the dense ones, and a weight comes back."""
    model = linear(1.0, 2.0, 3.0, 4.0)
    gradual = GradualPruning([(0.0, 0.5)], True, prune_by_magnitude)
    masks = gradual.begin(model, all_kept(model))
    assert model[0].weight.tolist() == [[0, 0, 3, 4]]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for number in range(1, FEEDBACK_STEPS):
        masks = step(gradual, model, optimizer, masks, [-0.25, 0.0, 0.0, 0.0], number, 32)
    # 15 steps moved the first dense weight from 1 to 4.75, unseen; the parameter has stayed at zero.
    assert model[0].weight.tolist() == [[0, 0, 3, 4]]
    gradual.before_step(model)
    assert model[0].weight.tolist() == [[4.75, 2, 3, 4]]
    masks = step(gradual, model, optimizer, masks, [-0.25, 0.0, 0.0, 0.0], FEEDBACK_STEPS, 32)
    # Step 16 takes a new mask from the dense weights 5, 2, 3, 4.
    assert masks["0.weight"].tolist() == [[True, False, False, True]]
    assert model[0].weight.tolist() == [[5, 0, 0, 4]]
    final = gradual.finish(model, masks, keep_dense=False)
    assert final["0.weight"].tolist() == [[True, False, False, True]]
    assert model[0].weight.tolist() == [[5, 0, 0, 4]]


def test_feedback_can_hand_on_the_dense_weights():
    model = linear(1.0, 2.0, 3.0, 4.0)
    gradual = GradualPruning([(0.0, 0.5)], True, prune_by_magnitude)
    masks = gradual.begin(model, all_kept(model))
    assert gradual.finish(model, masks, keep_dense=True) is None
    assert model[0].weight.tolist() == [[1, 2, 3, 4]]


def test_without_feedback_gone_weights_stay_gone_and_lose_their_momentum():
    model = linear(1.0, 2.0, 3.0, 4.0)
    gradual = GradualPruning([(0.5, 0.5), (1.0, 0.75)], False, prune_by_magnitude)
    masks = gradual.begin(model, all_kept(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    masks = step(gradual, model, optimizer, masks, [-1.0, 0.0, 0.0, 0.0], 1, 4)
    assert masks.num_kept == 4
    assert model[0].weight.tolist() == [[1.5, 2, 3, 4]]
    masks = step(gradual, model, optimizer, masks, [0.0, 0.0, 0.0, -1.0], 2, 4)
    assert masks["0.weight"].tolist() == [[False, False, True, True]]  # 1.75, 2, 3, 4.5
    assert optimizer.state[model[0].weight]["momentum_buffer"].tolist() == [[0, 0, 0, -1]]
    masks = step(gradual, model, optimizer, masks, [-99.0, 0.0, 0.0, 0.0], 3, 4)
    assert model[0].weight.tolist() == [[0, 0, 3, 4.75]]
    masks = step(gradual, model, optimizer, masks, [0.0, 0.0, 0.0, 0.0], 4, 4)
    assert masks["0.weight"].tolist() == [[False, False, False, True]]


def test_events_fall_on_rounded_steps():
    gradual = GradualPruning([(0.25, 0.5), (0.5, 0.6)], False, prune_by_magnitude)
    assert [gradual.sparsity_after(step, 9) for step in range(10)] == [0, 0, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]


class Watch(TrainerCallback):
    """Sparsity and exactness of the model at the end of every step."""

    def __init__(self):
        self.zeros = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        weights = [
            p for name, p in model.named_parameters() if "layer." in name and p.dim() == 2 and "bias" not in name
        ]
        self.zeros.append(sum(int((p == 0).sum()) for p in weights))


@pytest.mark.parametrize("method", ["gmp", "dpf"])
def test_the_model_gets_sparser_while_it_is_trained(make_trainer, method):
    WATCH.zeros.clear()
    settings = {"pruning_method": method, "pruning_interval": 0.5, "num_phases": 2, "pruning_scope": "uniform"}
    trainer = make_trainer(settings, callbacks=[Shared()])
    trainer.train()
    # Two epochs of 6 steps, an event every 3 steps: 75 % - 75 % (1 - j/3)^3 of 20,480.
    counts = {0: 0, 3: 10809, 6: 14791, 9: 15360}
    expected = [counts[3 * (step // 3) if step < 9 else 9] for step in range(1, 13)]
    assert all(abs(seen - want) <= 8 for seen, want in zip(WATCH.zeros, expected, strict=True)), WATCH.zeros
    assert trainer.masks.num_kept == 5120
    trainer.masks.check(trainer.model)
    soup = trainer.report["phases"][0]["soup"]
    assert (soup["ingredients"], soup["sparsity"]) == (["candidate-1"], 0.75)


WATCH = Watch()


class Shared(TrainerCallback):
    """Callbacks are copied for every candidate; this one reports to the module's."""

    def on_step_end(self, *args, **kwargs):
        WATCH.on_step_end(*args, **kwargs)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["gmp", "dpf", "dpf-sms"])
def test_resumed_in_the_middle_it_is_the_same_model(make_trainer, tmp_path, method):
    """Checkpoints hold masked weights, as every evaluation sees them; the dense ones lie beside them and are not lost."""
    settings = {
        "pruning_method": method,
        "pruning_interval": 0.5,
        "save_strategy": "steps",
        "save_steps": 1,
        "num_candidates": 2,
    }
    settings |= {"pruning_scope": "uniform", "num_train_epochs": 3 if method == "dpf-sms" else 1}
    settings |= {"pruning_interval": 2.0} if method == "dpf-sms" else {}
    whole = make_trainer({"output_dir": str(tmp_path / "whole"), **settings})
    whole.train()
    cut = make_trainer({"output_dir": str(tmp_path / "cut"), **settings}, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    checkpoints = sorted((tmp_path / "cut").rglob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert checkpoints
    last = checkpoints[-1]
    if method == "dpf":
        masked, dense = load_file(last / "model.safetensors"), load_file(last / "dense.safetensors")
        masks = Masks.load(last / "masks.safetensors")
        assert 0 < masks.sparsity() < 0.75
        for name, mask in masks.items():
            assert not masked[name][~mask].any()
            assert dense[name][~mask].any(), "the dense weights were lost"
            assert torch.equal(masked[name][mask], dense[name][mask])
    make_trainer({"output_dir": str(tmp_path / "cut"), **settings}).train(resume_from_checkpoint=True)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluations_in_the_middle_see_masked_weights(make_trainer):
    seen = []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            if "candidate" in args.output_dir:
                seen.append(int((model.encoder.block[0].layer[0].SelfAttention.q.weight == 0).sum()))

    settings = {"pruning_method": "dpf", "pruning_interval": 0.5, "eval_strategy": "steps", "eval_steps": 3}
    make_trainer({**settings, "pruning_scope": "uniform"}, callbacks=[Look()]).train()
    # q has 1,024 weights; events at steps 3, 6 and 9 of 12.
    assert [round(count / 1024, 2) for count in seen] == [0.53, 0.72, 0.75, 0.75]


def test_best_model_loading_is_refused(make_args):
    with pytest.raises(ValueError, match=r"Expected no load_best_model_at_end with pruning_method='gmp'"):
        make_args(pruning_method="gmp", load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")


def test_dense_weights_go_on_between_the_segments_of_feedback_with_soups(make_trainer):
    trainer = make_trainer(
        {
            "pruning_method": "dpf-sms",
            "soup_method": "uniform",
            "keep_candidates": True,
            "pruning_scope": "uniform",
            "num_train_epochs": 3,
        }
    )
    trainer.train()
    run = Path(trainer.args.output_dir) / "_run"
    _, second, third = (load_file(run / f"phase-{number}" / "soup" / "model.safetensors") for number in (1, 2, 3))
    assert not (run / "phase-2/soup/masks.safetensors").exists()
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert int((second[name] == 0).sum()) == 0
    assert int((third[name] == 0).sum()) == 768
    a, b = (load_file(run / f"phase-2/candidate-{i}/model.safetensors") for i in (1, 2))
    assert torch.equal(second[name], ((a[name].double() + b[name].double()) / 2).float())
    # The last mask is taken from the average, and frozen.
    expected = prune(model_with(second), 0.75, scope="uniform")
    assert trainer.masks.fingerprint() == expected.fingerprint()
    assert not (run / "phase-2/trial").exists()


def model_with(weights):
    model = tiny_t5()
    model.load_state_dict(weights, strict=False)
    return model
