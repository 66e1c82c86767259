"""Calibration and the worst class, by hand."""

import math

import pytest
import torch

from sms_hf.metrics import expected_calibration_error, worst_class_accuracy

torch.set_num_threads(1)


def rows(*confidences):
    """Probabilities of two classes; the first has the confidence."""
    return torch.tensor([[c, 1 - c] for c in confidences])


def test_calibration_by_hand():
    # Two bins above one half of ten: (0.6, 0.7] holds 0.65 twice, one right; (0.8, 0.9] holds 0.9, wrong.
    probabilities, labels = rows(0.65, 0.65, 0.9), torch.tensor([0, 1, 1])
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(2 / 3 * 0.15 + 1 / 3 * 0.9)
    # One bin: mean confidence 2.2 / 3, one of three right.
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(2.2 / 3 - 1 / 3)


@pytest.mark.parametrize("bins", [5, 10, 15, 20])
def test_a_border_belongs_to_the_bin_below(bins):
    """Confidences 3/5 (right) and 0.61 (wrong) lie in two bins, whose gaps of 0.4 and 0.61 would be 0.105 in one."""
    probabilities, labels = rows(0.6, 0.61), torch.tensor([0, 1])
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx((0.4 + 0.61) / 2, abs=1e-6)


def test_sure_and_right_or_wrong():
    assert expected_calibration_error(rows(1.0, 1.0), torch.tensor([0, 0])) == 0
    assert expected_calibration_error(rows(1.0, 1.0), torch.tensor([1, 1])) == 1
    assert expected_calibration_error(rows(0.75, 0.75, 0.75, 0.75), torch.tensor([0, 0, 0, 1])) == 0


def test_errors_of_one_sign_within_a_bin_do_not_cancel_over_bins():
    probabilities, labels = rows(0.55, 0.95), torch.tensor([0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx((0.45 + 0.95) / 2)


def test_calibration_of_nan_is_nan():
    probabilities = torch.tensor([[float("nan")] * 2, [0.9, 0.1]])
    assert math.isnan(expected_calibration_error(probabilities, torch.tensor([0, 0])))


@pytest.mark.parametrize(
    ("probabilities", "labels", "bins", "message"),
    [
        (torch.tensor([[3.0, -1.0]]), torch.tensor([0]), 15, r"lie in \[0, 1\], got -1 to 3\. Pass logits.softmax"),
        (rows(0.9, 0.8), torch.tensor([0]), 15, r"must be \(N, C\) and labels \(N,\).*got shapes \(2, 2\) and \(1,\)"),
        (torch.zeros(0, 2), torch.zeros(0), 15, "with N of at least 1"),
        (rows(0.9), torch.tensor([0]), 0, r"bins must be at least 1, got 0\."),
    ],
)
def test_what_has_no_calibration(probabilities, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, labels, bins)


def test_the_worst_class_of_those_that_occur():
    labels = torch.tensor([0, 0, 0, 5, 5, 9])
    predictions = torch.tensor([0, 0, 1, 5, 9, 9])
    assert worst_class_accuracy(predictions, labels) == 0.5
    assert worst_class_accuracy(labels, labels) == 1.0
    assert worst_class_accuracy(torch.tensor([1]), torch.tensor([0])) == 0.0


def test_predictions_are_classes_and_no_logits():
    with pytest.raises(ValueError, match=r"both be \(N,\).*got shapes \(2, 3\) and \(2,\)\. Pass logits.argmax"):
        worst_class_accuracy(torch.zeros(2, 3), torch.zeros(2))
