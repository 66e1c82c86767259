"""Distillation by hand, and candidates that are taught by the dense model."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_t5
from torch.nn.functional import log_softmax
from transformers.modeling_outputs import CausalLMOutput

from sms_hf.training.masked.distillation import distillation_loss


def teacher(logits):
    """A model that answers so, whatever it is asked."""
    return lambda **inputs: CausalLMOutput(logits=torch.tensor(logits))


def student(logits):
    return CausalLMOutput(logits=torch.tensor(logits))


def test_two_classes_by_hand():
    """p = (3/4, 1/4) at T = 1 of the teacher, (1/2, 1/2) of the student: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = distillation_loss(student([[0.0, 0.0]]), teacher([[math.log(3.0), 0.0]]), {}, 1.0, False)
    assert float(loss) == pytest.approx(expected)
    # Twice the logits at twice the temperature: the same distributions, times T squared.
    warm = distillation_loss(student([[0.0, 0.0]]), teacher([[2 * math.log(3.0), 0.0]]), {}, 2.0, False)
    assert float(warm) == pytest.approx(4 * expected)


def test_what_is_no_target_does_not_count():
    alike, unlike = [0.0, 0.0], [math.log(3.0), 0.0]
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    told, asked = teacher([[unlike, unlike, alike]]), student([[alike, alike, alike]])
    labels = {"labels": torch.tensor([[1, -100, 0]])}
    assert float(distillation_loss(asked, told, labels, 1.0, False)) == pytest.approx(one / 2)
    # A language model's position i answers for label i + 1, and the last one for none.
    assert float(distillation_loss(asked, told, {"labels": torch.tensor([[-100, 1, 0]])}, 1.0, True)) == pytest.approx(
        one
    )
    # Of an accumulated batch of ten targets.
    assert float(distillation_loss(asked, told, labels, 1.0, False, 10)) == pytest.approx(one / 10)


def test_pixels_are_targets_one_by_one():
    loss = distillation_loss(
        student([[[[0.0, 0.0]], [[0.0, 0.0]]]]), teacher([[[[math.log(3.0), 0.0]], [[0.0, 0.0]]]]), {}, 1.0, False
    )
    assert float(loss) == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


def test_logits_that_do_not_align_are_refused():
    with pytest.raises(ValueError, match=r"logits of one shape, got \(1, 2\) and \(1, 3\)"):
        distillation_loss(student([[0.0, 0.0]]), teacher([[0.0, 0.0, 0.0]]), {}, 1.0, False)
    with pytest.raises(ValueError, match="needs a model whose output has logits, got SimpleNamespace"):
        distillation_loss(SimpleNamespace(), teacher([[0.0]]), {}, 1.0, False)


def divergence(model, dense, trainer):
    """Mean KL of the dense model's next token distributions to a model's, on the training data."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        logits, told = model.eval()(**batch).logits, dense.eval()(**batch).logits
    p, q = log_softmax(told, -1), log_softmax(logits, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_candidates_that_are_taught_answer_more_like_the_dense_model(make_trainer, tmp_path):
    dense = tiny_t5(seed=3, dropout=0.0)
    found = {}
    for weight in (0.0, 1.0):
        settings = {
            "distill_weight": weight,
            "num_train_epochs": 3,
            "num_phases": 1,
            "output_dir": str(tmp_path / str(weight)),
        }
        trainer = make_trainer(settings, model=copy.deepcopy(dense))
        trainer.train()
        trainer.masks.check(trainer.model)
        found[weight] = divergence(trainer.model, dense, trainer)
    assert found[1.0] < 0.5 * found[0.0]


def test_without_a_weight_there_is_no_teacher(make_trainer, monkeypatch):
    from sms_hf.training.run.bench import Bench

    def asked(self):
        raise AssertionError("a forward pass for nothing")

    monkeypatch.setattr(Bench, "teacher", asked)
    make_trainer({"num_phases": 1, "distill_temperature": 4.0}).train()


def test_the_weight_may_vary(make_trainer):
    trainer = make_trainer({"num_candidates": None, "vary": {"distill_weight": [0.0, 0.5]}, "num_phases": 1})
    trainer.train()
    losses = [c["train_loss"] for c in trainer.report["phases"][0]["candidates"]]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("wrong", [{"distill_weight": 1.5}, {"distill_weight": -0.1}, {"distill_temperature": 0.0}])
def test_weights_and_temperatures_that_make_no_sense(make_args, wrong):
    with pytest.raises(ValueError, match=r"distill_weight must lie in \[0, 1\] and distill_temperature above 0"):
        make_args(**wrong)


def test_biases_and_norms_alone_are_retrained(make_trainer):
    trainer = make_trainer({"retrained": "biases-and-norms", "num_phases": 1, "keep_candidates": True})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n] * (trainer.masks.get(n, 1)))
    }
    assert changed
    assert all("layer_norm" in name for name in changed), "a T5 has no biases"
    assert all(p.requires_grad for p in trainer.model.parameters())
    with pytest.raises(ValueError, match="Expected retrained='all' with pruning_method='gmp'"):
        make_trainer({"retrained": "biases-and-norms", "pruning_method": "gmp"})


def test_a_loss_of_the_users_own_is_distilled_too(make_args):
    """Whatever signature it has, in front of Trainer's and behind ours."""
    from conftest import collate, reversal
    from transformers import Seq2SeqTrainer

    from sms_hf import SparseSoupMixin

    class Theirs(Seq2SeqTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (3 * loss, outputs) if return_outputs else 3 * loss

    class Soup(SparseSoupMixin, Theirs):
        pass

    losses = []
    for number, weight in enumerate((0.0, 1e-9)):
        args = make_args(distill_weight=weight, num_phases=1, output_dir=f"{make_args().output_dir}-{number}")
        trainer = Soup(tiny_t5(), args, collate, reversal(24), reversal(10, seed=1))
        trainer.train()
        losses.append(trainer.report["phases"][0]["candidates"][0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 9, "three times a loss of about 4"


def test_a_model_without_biases_and_norms_is_refused_before_anything_is_trained(make_trainer, tmp_path):
    model = tiny_t5()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    with pytest.raises(
        ValueError, match="Expected biases or norms to train with retrained='biases-and-norms', found none"
    ):
        make_trainer({"retrained": "biases-and-norms"}, model=model).train()
    assert not (tmp_path / "run/_run").exists()
