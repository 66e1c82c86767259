"""Masks hold while a model is trained."""

import pytest
import torch
from torch import nn

from sms_hf import Masks
from sms_hf.training.masked.masking import MaskEnforcer


def toy(weight):
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(torch.tensor(weight))
    return model


MASKS = Masks({"weight": torch.tensor([[True, False], [False, True]])})


def test_literal_gradients_and_weights():
    model, enforcer = toy([[1.0, 0.0], [0.0, 4.0]]), MaskEnforcer(MASKS)
    model.weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    enforcer.mask_gradients_(model)
    assert model.weight.grad.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    with torch.no_grad():
        model.weight += 1.0
    enforcer.mask_weights_(model)
    assert model.weight.tolist() == [[2.0, 0.0], [0.0, 5.0]]


def test_nan_in_a_pruned_weight_is_cleared_when_masks_are_set():
    model = toy([[1.0, float("nan")], [float("inf"), 4.0]])
    MaskEnforcer(MASKS).mask_weights_(model)
    assert model.weight.tolist() == [[1.0, 0.0], [0.0, 4.0]]


def test_parameters_that_are_replaced_later_are_found_by_name():
    model, enforcer = toy([[1.0, 0.0], [0.0, 4.0]]), MaskEnforcer(MASKS)
    enforcer.mask_weights_(model)
    model.weight = nn.Parameter(torch.full((2, 2), 7.0, dtype=torch.bfloat16))
    enforcer.mask_weights_(model)
    assert model.weight.tolist() == [[7.0, 0.0], [0.0, 7.0]]
    assert model.weight.dtype == torch.bfloat16


def test_frozen_weights_without_gradient_are_passed_over():
    model, enforcer = toy([[1.0, 0.0], [0.0, 4.0]]), MaskEnforcer(MASKS)
    enforcer.mask_gradients_(model)
    assert model.weight.grad is None


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_hand_computed_step_of_sgd_and_zeros_under_weight_decay(optimizer):
    model, enforcer = toy([[1.0, 0.0], [0.0, 4.0]]), MaskEnforcer(MASKS)
    step = optimizer(model.parameters(), lr=0.5, weight_decay=0.1)
    model(torch.tensor([[1.0, 2.0]])).sum().backward()  # d/dW = [[1, 2], [1, 2]]
    enforcer.mask_gradients_(model)
    step.step()
    enforcer.mask_weights_(model)
    if optimizer is torch.optim.SGD:  # w - 0.5 (g + 0.1 w)
        assert torch.allclose(model.weight.detach(), torch.tensor([[0.45, 0.0], [0.0, 2.8]]))
    assert model.weight[0, 1] == 0.0
    assert model.weight[1, 0] == 0.0
