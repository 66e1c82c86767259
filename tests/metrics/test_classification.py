"""Metrics of classifiers, from numbers that can be counted by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from sms_hf.metrics.classification import class_maps, classification_metrics, segmentation_metrics

# ---- Rows --------------------------------------------------------------------------------------------------------------

# Differences of logits whose softmax is 0.75 to 0.25.
THREE_TO_ONE = math.log(3)
# Answers: 0, 0, 1, 1, 1; right: the first, third, fourth.
LOGITS = np.array([[THREE_TO_ONE, 0], [THREE_TO_ONE, 0], [0, THREE_TO_ONE], [0, THREE_TO_ONE], [0, THREE_TO_ONE]])
LABELS = np.array([0, 1, 1, 1, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("predictions", [lambda z: z, lambda z: (z, np.zeros((5, 4, 8)))], ids=["array", "tuple"])
def test_counted_by_hand(predictions, dtype):
    found = classification_metrics()(EvalPrediction(predictions(LOGITS.astype(dtype)), LABELS))
    assert found == {
        "accuracy": 0.6,
        "worst_class_accuracy": 0.5,  # One of two zeros; two of three ones.
        "ece": pytest.approx(0.15, abs=1e-3),  # All five have confidence 0.75, three are right.
    }
    assert all(type(value) is float for value in found.values())


def test_many_classes_of_which_few_occur():
    logits = 20.0 * np.eye(10)[[3, 3, 7]]
    found = classification_metrics(num_labels=10)(EvalPrediction(logits, np.array([3, 3, 8])))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["worst_class_accuracy"] == 0.0
    assert found["ece"] == pytest.approx(1 / 3)


def test_a_model_that_outputs_nan_is_not_calibrated():
    found = classification_metrics()(EvalPrediction(np.full((2, 3), np.nan), np.array([0, 1])))
    assert math.isnan(found["ece"])


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (np.zeros((4, 1)), np.zeros(4), r"two or more classes and labels \(N,\), got shapes \(4, 1\) and \(4,\)"),
        (np.zeros((4, 3)), np.zeros((4, 3)), r"got shapes \(4, 3\) and \(4, 3\)\. Pass a compute_metrics of your own"),
        (np.zeros((4, 7, 3)), np.zeros((4, 7)), "or tokens"),
    ],
)
def test_other_tasks_are_errors(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics()(EvalPrediction(predictions, labels))


@pytest.mark.parametrize(
    ("compute", "predictions", "labels"),
    [
        (classification_metrics(3), np.zeros((4, 2)), np.zeros(4)),
        (segmentation_metrics(3), np.zeros((1, 2, 4, 4)), np.zeros((1, 4, 4))),
    ],
)
def test_another_number_of_classes_is_an_error(compute, predictions, labels):
    with pytest.raises(ValueError, match=r"logits must be of 3 classes, got 2\. Set num_labels"):
        compute(EvalPrediction(predictions, labels))


# ---- Pixels ------------------------------------------------------------------------------------------------------------


def logits_of(classes, num_labels):
    """Logits `(N, C, h, w)` whose largest are these classes `(N, h, w)`."""
    return np.moveaxis(np.eye(num_labels, dtype=np.float32)[np.array(classes)], -1, 1)


def segmented(predictions, labels, num_labels=4, **options):
    logits = logits_of(predictions, num_labels)
    return segmentation_metrics(num_labels, **options)(EvalPrediction(logits, np.array(labels)))


def test_intersection_over_union_by_hand():
    found = segmented([[[0, 0, 1], [1, 1, 2]]], [[[0, 0, 0], [1, 1, 1]]])
    # Class 0: 2 of 3; class 1: 2 of 4; class 2, predicted only: 0 of 1; class 3 nowhere.
    assert found == {"mean_iou": pytest.approx((2 / 3 + 1 / 2 + 0) / 3), "pixel_accuracy": pytest.approx(4 / 6)}


@pytest.mark.parametrize("ignored", [255, -100])
def test_ignored_pixels_count_nowhere(ignored):
    # The wrong 3 lies on an ignored pixel: class 3 does not occur.
    found = segmented([[[0, 3], [1, 1]]], [[[0, ignored], [1, 0]]])
    assert found == {"mean_iou": pytest.approx((1 / 2 + 1 / 2) / 2), "pixel_accuracy": pytest.approx(2 / 3)}


def test_another_ignore_index():
    assert segmented([[[1, 0]]], [[[1, 9]]], ignore_index=9) == {"mean_iou": 1.0, "pixel_accuracy": 1.0}


def test_the_confusion_is_counted_over_all_images():
    """Not a mean over images: that would be (1 + 0) / 2 of class 0 and 0 of class 1."""
    found = segmented([[[0, 0, 0]], [[0, 1, 1]]], [[[0, 0, 0]], [[1, 1, 1]]], num_labels=2)
    assert found["mean_iou"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["pixel_accuracy"] == pytest.approx(5 / 6)


def test_logits_are_interpolated_to_the_labels():
    logits = np.array([[[[0.0, 4.0]], [[3.0, 0.0]]]], dtype=np.float32)  # (1, 2, 1, 2)
    labels = np.array([[[1, 1, 0, 0], [1, 1, 0, 0]]])
    # Class 0 minus class 1 along a row: -3 and 4, interpolated to -3, -1.25, 2.25, 4.
    assert segmentation_metrics(2)(EvalPrediction(logits, labels)) == {"mean_iou": 1.0, "pixel_accuracy": 1.0}
    # A border that nearest neighbours would put in the middle: -1 and 4 become -1, 0.25, 2.75, 4.
    logits = np.array([[[[0.0, 4.0]], [[1.0, 0.0]]]], dtype=np.float32)
    labels = np.array([[[1, 0, 0, 0]]])
    assert segmentation_metrics(2)(EvalPrediction((logits,), labels))["pixel_accuracy"] == 1.0


def test_maps_made_batch_by_batch_score_as_their_logits_do():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, 3, 3, generator=generator), torch.randint(5, (4, 7, 6), generator=generator)
    maps = torch.cat([class_maps((logits[i : i + 2], None), labels[i : i + 2]) for i in (0, 2)])
    assert (maps.shape, maps.dtype) == (labels.shape, torch.int16)
    compute = segmentation_metrics(5)
    expected = compute(EvalPrediction(logits.numpy(), labels.numpy()))
    assert compute(EvalPrediction(maps.numpy(), labels.numpy())) == expected


def test_nothing_but_ignored_pixels_has_no_score():
    found = segmented([[[0, 1]]], [[[255, -100]]])
    assert all(math.isnan(value) for value in found.values())


def test_labels_out_of_range_are_an_error():
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, 4\) or be 255 or -100, which are ignored, got 0 to 4"
    ):
        segmented([[[0, 1]]], [[[0, 4]]])


def test_wrong_shapes_are_an_error():
    with pytest.raises(
        ValueError,
        match=r"needs logits \(N, C, h, w\) or classes \(N, H, W\) and labels \(N, H, W\), got shapes \(4, 2\) and",
    ):
        segmentation_metrics(2)(EvalPrediction(np.zeros((4, 2)), np.zeros(4)))


def test_a_perfect_answer_to_random_labels():
    labels = torch.randint(0, 4, (3, 5, 7), generator=torch.Generator().manual_seed(0)).numpy()
    assert segmented(labels, labels) == {"mean_iou": 1.0, "pixel_accuracy": 1.0}
