"""Criteria that look at data: Wanda and Taylor by hand, and what they leave alone."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sms_hf import CRITERIA, find_prunable, prune
from sms_hf.sparsity import Criterion


class One(nn.Module):
    """A single layer; `batches` are inputs, the loss is the sum of the outputs times `factor`."""

    def __init__(self, layer, weight):
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight).reshape(layer.weight.shape))
        self.dropout = nn.Dropout(0.5)

    def losses(self, *batches, factor=1.0):
        return lambda model: (factor * model.dropout(model.layer(torch.tensor(b))).sum() for b in batches)


def linear(*rows):
    return One(nn.Linear(len(rows[0]), len(rows), bias=False), rows)


def kept(masks):
    (mask,) = masks.values()
    return mask.int().tolist()


# Rows of inputs whose features have the norms 4, 1, 2, 1 over all tokens.
INPUTS = [[[4.0, 0.0, 1.0, 0.6], [0.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0, 0.8], [0.0, 0.0, 1.0, 0.0]]]


def test_wanda_by_hand():
    """Scores 0.6, 0.4, 0.6, 0.2: the second and the fourth go. By magnitude the first and the fourth would."""
    model = linear([0.15, 0.4, 0.3, 0.2])
    assert kept(prune(model, 0.5, criterion="wanda", calibration=model.losses(*INPUTS))) == [[1, 0, 1, 0]]
    other = linear([0.15, 0.4, 0.3, 0.2])
    assert kept(prune(other, 0.5)) == [[0, 1, 1, 0]]


def test_wanda_of_a_transposed_layer():
    """GPT-2's Conv1D holds (in, out)."""
    model = One(Conv1D(1, 4), [0.15, 0.4, 0.3, 0.2])
    assert kept(prune(model, 0.5, criterion="wanda", calibration=model.losses(*INPUTS))) == [[1], [0], [1], [0]]


def test_wanda_of_a_convolution():
    """Channels of norms 1 and 3, a kernel of two: scores 0.5, 0.2, 0.3, 0.3, and of equal ones the first goes."""
    model = One(nn.Conv1d(2, 1, 2, bias=False), [[[0.5, 0.2], [0.1, 0.1]]])
    inputs = [[[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]]
    masks = prune(model, 0.5, criterion="wanda", target_modules=["layer"], calibration=model.losses(inputs))
    assert kept(masks) == [[[1, 0], [0, 1]]]


def test_wanda_under_a_pattern_compares_groups_of_each_row():
    model = linear([0.15, 0.4, 0.3, 0.2], [1.0, 0.1, 0.1, 0.9])
    masks = prune(model, 0.5, criterion="wanda", scope="uniform", pattern="2:4", calibration=model.losses(*INPUTS))
    assert kept(masks) == [[1, 0, 1, 0], [1, 0, 0, 1]]


def test_taylor_by_hand():
    """
    The gradient of the sum of outputs is the sum of inputs: (1, 0, 3) and (-1, 2, 1) in two batches. Squares of g w, summed:
    3^2 (1 + 1) = 18, 2^2 (0 + 4) = 16, 1^2 (9 + 1) = 10.
    """
    model = linear([3.0, 2.0, 1.0])
    batches = [[[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]], [[-1.0, 2.0, 1.0]]]
    assert kept(prune(model, 1 / 3, criterion="taylor", calibration=model.losses(*batches))) == [[1, 1, 0]]
    # A mean of gradients would have scored the first 0, and removed that one.
    model = linear([3.0, 2.0, 1.0])
    assert kept(prune(model, 2 / 3, criterion="taylor", calibration=model.losses(*batches))) == [[1, 0, 0]]


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_the_model_stays_as_it_was(criterion):
    model = linear([3.0, 2.0, 1.0, 0.5]).train()
    model.layer.weight.grad = torch.ones(1, 4)
    state = torch.get_rng_state()
    prune(model, 0.25, criterion=criterion, calibration=model.losses(*INPUTS))
    assert model.training
    assert model.dropout.training
    assert torch.equal(model.layer.weight.grad, torch.ones(1, 4))
    assert torch.equal(torch.get_rng_state(), state), "dropout is off while it is looked"
    assert not model.layer._forward_pre_hooks


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
@pytest.mark.parametrize(
    ("calibration", "says"),
    [(None, "Expected calibration batches .* got none"), (lambda model: iter(()), "at least one calibration batch")],
)
def test_without_batches_nothing_is_pruned(criterion, calibration, says):
    model = linear([3.0, 2.0, 1.0, 0.5])
    with pytest.raises(ValueError, match=says):
        prune(model, 0.5, criterion=criterion, calibration=calibration)
    assert model.layer.weight.all()


def test_a_layer_that_no_batch_reaches_is_named():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for criterion in ("wanda", "taylor"):
        with pytest.raises(ValueError, match=r"got none for \['1.weight'\]"):
            prune(model, 0.5, criterion=criterion, calibration=lambda m: iter([m[0](torch.ones(1, 2)).sum()]))


def test_snip_is_a_row():
    """`|g w|` of the mean gradient (Lee et al. 2019): the first weight, whose gradients cancel, goes."""
    snip = Criterion(
        lambda seen: lambda name, start, piece: seen.sums[name].reshape(-1)[start : start + len(piece)].abs(),
        "gradients",
        lambda weight, gradient: weight * gradient,
    )
    model = linear([3.0, 2.0, 1.0])
    batches = [[[1.0, 0.0, 3.0]], [[-1.0, 2.0, 1.0]]]
    assert kept(prune(model, 1 / 3, criterion=snip, calibration=model.losses(*batches))) == [[0, 1, 1]]


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_a_run_prunes_by_what_its_training_data_say(make_trainer, criterion):
    settings = {"pruning_criterion": criterion, "calibration_batches": 2, "pruning_scope": "uniform"}
    trainer = make_trainer(settings)
    trainer.train()
    assert trainer.masks.num_kept == 5120
    trainer.masks.check(trainer.model)
    first = trainer.report["phases"][0]["parent"]["mask_fingerprint"]
    again = make_trainer({**settings, "output_dir": f"{trainer.args.output_dir}-again"})
    again.train()
    assert again.report["phases"][0]["parent"]["mask_fingerprint"] == first
    by_magnitude = make_trainer({"output_dir": f"{trainer.args.output_dir}-magnitude", "pruning_scope": "uniform"})
    by_magnitude.train()
    assert by_magnitude.report["phases"][0]["parent"]["mask_fingerprint"] != first


def test_what_looks_at_data_does_not_prune_in_the_middle_of_a_training(make_args):
    with pytest.raises(ValueError, match=r"no pruning_method='gmp' with pruning_criterion='wanda'"):
        make_args(pruning_method="gmp", pruning_criterion="wanda")
    with pytest.raises(ValueError, match=r"calibration_batches must be at least 1, got 0"):
        make_args(pruning_criterion="taylor", calibration_batches=0)


def test_all_rows_are_named():
    assert sorted(CRITERIA) == ["magnitude", "random", "taylor", "wanda"]
    assert find_prunable(linear([1.0])).num_weights == 1
