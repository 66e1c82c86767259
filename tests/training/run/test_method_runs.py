"""Every method end to end, on models of a second."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import tiny_t5
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
)

from sms_hf import Masks, SparseSoupTrainer, prune
from sms_hf.training.plan.methods import METHODS
from sms_hf.training.run.bench import Bench

UNIFORM = {"pruning_scope": "uniform"}  # A global ranking of a fresh T5 empties its query weights.


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(trainer, *parts):
    return Path(trainer.args.output_dir) / "_run" / Path(*parts)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "imp-avg"])
def test_every_method_ends_exactly_at_the_goal(make_trainer, method):
    trainer = make_trainer({"pruning_method": method, "num_train_epochs": 3, **UNIFORM})
    output = trainer.train()
    assert trainer.masks.num_kept == 5120  # A quarter of 20,480.
    trainer.masks.check(trainer.model)
    last = trainer.report["phases"][-1]
    assert last["soup"]["sparsity"] == 0.75
    assert trainer.evaluate()["eval_loss"] == pytest.approx(last["soup"]["score"])
    assert (output.global_step > 0) == (method != "pruned")


def test_pruned_is_the_model_pruned_and_nothing_else(make_trainer):
    trainer = make_trainer({"pruning_method": "pruned"})
    trainer.train()
    expected = tiny_t5()
    masks = prune(expected, 0.75)
    assert trainer.masks.fingerprint() == masks.fingerprint()
    named = dict(expected.named_parameters())
    assert all(torch.equal(weight, named[name]) for name, weight in weights(trainer.args.output_dir).items())
    (candidate,) = trainer.report["phases"][0]["candidates"]
    assert (candidate["steps"], candidate["epochs"], candidate["train_loss"]) == (0, 0.0, None)


def test_one_candidate_of_sms_and_one_times_of_imp_mx_are_imp_bit_for_bit(make_trainer, tmp_path):
    found = []
    for method, m in (("imp", 3), ("sms", 1), ("imp-mx", 1), ("imp-reprune", 1), ("imp-avg", 1)):
        trainer = make_trainer(
            {"output_dir": str(tmp_path / method), "pruning_method": method, "num_candidates": m, **UNIFORM}
        )
        trainer.train()
        found.append(weights(tmp_path / method))
    assert all(same(found[0], other) for other in found[1:])


def test_imp_mx_takes_m_times_the_steps(make_trainer, tmp_path):
    steps = {}
    for method in ("imp", "imp-mx", "sms"):
        trainer = make_trainer(
            {"output_dir": str(tmp_path / method), "pruning_method": method, "num_candidates": 3, **UNIFORM}
        )
        steps[method] = trainer.train().global_step
    assert steps == {"imp": 12, "imp-mx": 36, "sms": 36}


def test_separate_runs_are_averaged_and_pruned_again(make_trainer, tmp_path):
    trainers = {}
    for method in ("imp-reprune", "imp-avg"):
        settings = {"output_dir": str(tmp_path / method), "pruning_method": method, "keep_candidates": True, **UNIFORM}
        trainers[method] = make_trainer(settings)
        trainers[method].train()
    average, reprune = trainers["imp-avg"], trainers["imp-reprune"]
    own = [Masks.load(run(average, f"phase-2/candidate-{i}/masks.safetensors")) for i in (1, 2)]
    assert own[0].fingerprint() != own[1].fingerprint(), "separate runs prune their own weights"
    assert [masks.num_kept for masks in own] == [5120, 5120]
    # Each is a whole run of IMP with its own seed.
    alone = make_trainer({"output_dir": str(tmp_path / "alone"), "pruning_method": "imp", "seed": 43, **UNIFORM})
    alone.train()
    assert same(weights(tmp_path / "alone"), weights(run(average, "phase-2/candidate-2")))
    # The average is as dense as the union, and reprune is that average pruned to the goal.
    a, b = (weights(run(average, f"phase-2/candidate-{i}")) for i in (1, 2))
    mean = weights(tmp_path / "imp-avg")
    for name, mask in average.masks.items():
        assert torch.equal(mask, own[0][name] | own[1][name])
        assert torch.equal(mean[name], ((a[name].double() + b[name].double()) / 2).float())
    assert 5120 < average.masks.num_kept <= 10240
    assert average.report["phases"][1]["soup"]["sparsity"] == pytest.approx(1 - average.masks.num_kept / 20480)
    model = tiny_t5()
    model.load_state_dict(mean, strict=False)
    assert reprune.masks.fingerprint() == prune(model, 0.75, scope="uniform").fingerprint()
    assert reprune.masks.num_kept == 5120
    assert average.report["phases"][0]["soup"] is None
    (overlap,) = average.report["phases"][1]["diagnostics"]["mask_overlaps"]
    both = sum(int((own[0][n] & own[1][n]).sum()) for n in own[0])
    assert overlap == {
        "between": ["candidate-1", "candidate-2"],
        "overlap": pytest.approx(both / average.masks.num_kept),
    }


def test_separate_runs_resume_and_clean_up(make_trainer, tmp_path):
    settings = {"pruning_method": "imp-reprune", "num_phases": 2, **UNIFORM}
    make_trainer({"output_dir": str(tmp_path / "whole"), **settings}).train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if "phase-2/candidate-2" in args.output_dir and state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer({"output_dir": str(tmp_path / "cut"), **settings}, callbacks=[Stop()]).train()
    resumed = make_trainer({"output_dir": str(tmp_path / "cut"), **settings})
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    left = [path.parent.name for path in run(resumed).rglob("model.safetensors")]
    assert left == ["soup"]


def test_a_candidate_that_diverged_does_not_go_on(make_trainer):
    settings = {"pruning_method": "imp-avg", "vary": {"learning_rate": [3e-3, 1e30]}, "num_candidates": None}
    trainer = make_trainer({**settings, "max_grad_norm": 0.0, "optim": "sgd", **UNIFORM})
    trainer.train()
    first, second = (phase["candidates"] for phase in trainer.report["phases"])
    assert first[1]["failure"]
    assert second[1]["failure"] == "it failed in the phase before"
    assert trainer.report["phases"][1]["soup"]["ingredients"] == ["candidate-1"]


def test_diagnostics_are_in_the_report(make_trainer):
    trainer = make_trainer({"num_candidates": 3, "keep_candidates": True, **UNIFORM})
    trainer.train()
    for number, phase in enumerate(trainer.report["phases"], start=1):
        found = phase["diagnostics"]
        a, b = (weights(run(trainer, f"phase-{number}/candidate-{i}")) for i in (1, 2))
        distance = sum(float(((a[name].double() - b[name].double()) ** 2).sum()) for name in a) ** 0.5
        assert found["geometry"]["distances"][0][1] == pytest.approx(distance)
        assert [point["between"] for point in found["midpoints"]] == [
            ["candidate-1", "candidate-2"],
            ["candidate-1", "candidate-3"],
            ["candidate-2", "candidate-3"],
        ]
        assert found["theoretical_speedup"] > 1.2
        assert len(phase["soup"]["sparsity_per_tensor"]) == 16
    # Masks are nested: 5,120 of 10,240 are left.
    assert trainer.report["phases"][1]["diagnostics"]["mask_overlap_with_previous_phase"] == 0.5


def test_candidates_without_a_common_basin_are_named(make_trainer, capsys):
    settings = {"vary": {"learning_rate": [0.01, 1.0]}, "num_candidates": None, "target_sparsity": 0.3, "num_phases": 1}
    trainer = make_trainer({**settings, "num_train_epochs": 15, "max_grad_norm": 0.0, **UNIFORM})
    trainer.train()
    (warning,) = trainer.report["phases"][0]["diagnostics"]["warnings"]
    assert warning.startswith("candidate-1 and candidate-2 share no basin: on one batch the loss between them is ")
    assert warning.endswith("narrow learning_rate (0.01 and 1.0).")
    (middle,) = trainer.report["phases"][0]["diagnostics"]["midpoints"]
    assert middle["barrier"] > 0.1
    assert warning in capsys.readouterr().out


def test_sub_soups_and_the_ensemble_on_request(make_trainer):
    trainer = make_trainer(
        {"num_candidates": 3, "keep_candidates": True, "num_phases": 1, "soup_method": "uniform", **UNIFORM}
    )
    trainer.train()
    found = trainer.evaluate_subsoups(sizes=(2, 3))
    assert [len(names) for names in found] == [2, 2, 2, 3]
    soup = trainer.report["phases"][0]["soup"]["score"]
    assert found["candidate-1", "candidate-2", "candidate-3"] == soup
    ensemble = trainer.evaluate_ensemble()["loss"]
    candidates = [candidate["score"] for candidate in trainer.report["phases"][0]["candidates"]]
    # The log of a mean is at least the mean of the logs.
    assert ensemble <= sum(candidates) / 3
    assert not list(run(trainer).glob("scratch-*"))


def test_without_their_weights_candidates_cannot_be_asked(make_trainer):
    trainer = make_trainer({"num_phases": 1, **UNIFORM})
    trainer.train()
    with pytest.raises(ValueError, match=r"Train with keep_candidates=True"):
        trainer.evaluate_ensemble()


@pytest.mark.parametrize("pattern", ["2:4", "neurons", "heads"])
@pytest.mark.parametrize("method", ["sms", "gmp", "dpf-sms"])
def test_patterns_hold_through_every_kind_of_method(make_trainer, pattern, method):
    settings = {"pruning_pattern": pattern, "target_sparsity": 0.5, "pruning_method": method, "num_train_epochs": 3}
    trainer = make_trainer({**settings, **UNIFORM})
    trainer.train()
    trainer.masks.check(trainer.model)
    if pattern == "2:4":
        for mask in trainer.masks.values():
            assert (mask.reshape(-1, 4).sum(1) == 2).all()
    else:
        assert trainer.masks.sparsity() == 0.5


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "neurons", "heads"])
def test_dense_phases_cover_what_will_be_pruned(make_trainer, pattern):
    """The dense weights that feedback keeps must be all that a mask can touch, biases of neurons included."""
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=64, num_labels=2
    )
    settings = {"pruning_pattern": pattern, "target_sparsity": 0.5, **UNIFORM}
    trainer = make_trainer(settings, model=BertForSequenceClassification(config))
    before = Bench(trainer).all_kept(trainer.model)
    assert before.sparsity() == 0
    after = prune(copy.deepcopy(trainer.model), 0.5, scope="uniform", pattern=pattern)
    assert list(before) == list(after)
    assert any(name.endswith("bias") for name in after) == (pattern in ("neurons", "heads"))


class Images(torch.utils.data.Dataset):
    def __init__(self, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(3, (rows,), generator=generator)
        self.pixels = torch.randn(rows, 1, 8, 8, generator=generator) + self.labels[:, None, None, None]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


def tiny_resnet():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return ResNetForImageClassification(config)


def test_batch_norm_statistics_are_those_of_the_soup_itself(make_args):
    args = make_args(
        num_phases=1, soup_method="uniform", keep_candidates=True, target_modules=r".*convolution", **UNIFORM
    )
    data = Images(24, 0)
    trainer = SparseSoupTrainer(model=tiny_resnet(), args=args, train_dataset=data, eval_dataset=Images(9, 1))
    trainer.train()
    trainer.masks.check(trainer.model)
    # The first batch norm sees the first convolution's output, whatever comes later: a reference in float64.
    model = trainer.model.double().eval()
    embedder = model.resnet.embedder.embedder
    batches = [data.pixels[i : i + 8].double() for i in (0, 8, 16)]
    outputs = [embedder.convolution(batch) for batch in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variance = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(embedder.normalization.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embedder.normalization.running_var, variance, rtol=1e-5, atol=1e-6)
    # Not the average of the candidates' statistics, which their training left or which were estimated for them.
    a, b = (weights(run(trainer, f"phase-1/candidate-{i}")) for i in (1, 2))
    name = "resnet.encoder.stages.1.layers.0.layer.1.normalization.running_var"
    assert not torch.equal(weights(trainer.args.output_dir)[name], (a[name] + b[name]) / 2)


def test_batch_norm_is_left_alone_on_request(make_args):
    args = make_args(
        num_phases=1, num_candidates=1, bn_recalibration_fraction=0.0, target_modules=r".*convolution", **UNIFORM
    )
    trainer = SparseSoupTrainer(model=tiny_resnet(), args=args, train_dataset=Images(24, 0), eval_dataset=Images(9, 1))
    trainer.train()
    tracked = [b for n, b in trainer.model.named_buffers() if n.endswith("num_batches_tracked")]
    assert {int(count) for count in tracked} == {6}, "the steps of training, nothing else"


def test_the_length_the_rate_and_the_schedule_may_vary_together(make_trainer):
    vary = {"num_train_epochs": [1, 2], "retrain_schedule": ["llr", "clr"], "learning_rate": [1e-3]}
    trainer = make_trainer({"vary": vary, "num_candidates": None, "num_phases": 1, **UNIFORM})
    trainer.train()
    assert [c["steps"] for c in trainer.report["phases"][0]["candidates"]] == [6, 6, 12, 12]


def test_the_soup_of_copies_is_the_copy(make_trainer):
    trainer = make_trainer(
        {"vary": {"seed": [5, 5, 5]}, "num_candidates": None, "soup_method": "uniform", "keep_candidates": True}
    )
    trainer.train()
    assert same(weights(run(trainer, "phase-2/soup")), weights(run(trainer, "phase-2/candidate-3")))
    assert trainer.report["phases"][1]["diagnostics"]["geometry"]["distances"][0][1] == 0


def test_a_run_survives_diagnostics_that_fail(make_trainer, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("no such batch")

    monkeypatch.setattr("sms_hf.training.run.diagnosing.theoretical_speedup", fail)
    trainer = make_trainer({"num_phases": 1, **UNIFORM})
    trainer.train()
    found = trainer.report["phases"][0]["diagnostics"]
    assert found["warnings"][-1] == "diagnostics failed: RuntimeError: no such batch"
    assert found["geometry"]["distance"]["min"] > 0
    assert "phase 1: diagnostics failed: RuntimeError: no such batch" in capsys.readouterr().out
