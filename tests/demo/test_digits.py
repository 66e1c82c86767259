"""The digits of the demo: the same everywhere, every digit in every split, no image twice; and the models for them."""

import sys

import pytest
import torch
from transformers import ResNetForImageClassification, ViTForImageClassification

from sms_hf.demo import DIGIT_SCALES, demo_digits, demo_image_classifier, jittered


@pytest.fixture(scope="module")
def digits():
    return demo_digits()


def test_the_splits_share_out_every_digit_evenly(digits):
    counts = {split: torch.bincount(data[:]["labels"]).tolist() for split, data in digits.items()}
    assert counts == {
        "train": [100, 101, 99, 101, 101, 101, 101, 100, 97, 99],
        "validation": [29, 30, 29, 31, 30, 30, 30, 29, 29, 30],
        "test": [49, 51, 49, 51, 50, 51, 50, 50, 48, 51],
    }


def test_every_image_is_in_one_split(digits):
    pixels = torch.cat([data[:]["pixel_values"] for data in digits.values()])
    assert pixels.shape == (1797, 1, 8, 8)
    assert len(pixels.unique(dim=0)) == 1797
    assert pixels.dtype == torch.float32


def test_training_pixels_are_standardised_and_the_rows_are_mixed(digits):
    pixels = digits["train"][:]["pixel_values"]
    assert pixels.mean().item() == pytest.approx(0, abs=1e-5)
    assert pixels.std().item() == pytest.approx(1, abs=1e-5)
    assert digits["train"][:8]["labels"].tolist() == [6, 5, 7, 9, 8, 4, 6, 0]
    assert len(set(digits["validation"][:40]["labels"].tolist())) == 10


def test_a_scale_repeats_pixels(digits):
    large, small = demo_digits(4)["test"][:3]["pixel_values"], digits["test"][:3]["pixel_values"]
    assert large.shape == (3, 1, 32, 32)
    assert torch.equal(large[:, :, 2::4, 1::4], small)
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        demo_digits(0)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install sms_hf\[demo\]"):
        demo_digits()


@pytest.mark.parametrize(
    ("kind", "cls"), [("vit", ViTForImageClassification), ("resnet", ResNetForImageClassification)]
)
def test_models_are_made_from_a_seed_and_leave_the_global_generator_alone(kind, cls):
    state = torch.get_rng_state()
    models = [demo_image_classifier(["a", "b"], kind, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(models[0], cls)
    first, again, other = (next(p for p in model.parameters() if p.dim() == 4) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert models[0].config.id2label == {0: "a", 1: "b"}
    side = 8 * DIGIT_SCALES[kind]
    assert models[0](pixel_values=torch.zeros(3, 1, side, side)).logits.shape == (3, 2)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of \['resnet', 'vit'\], got 'cnn'"):
        demo_image_classifier(["a", "b"], "cnn")


def test_jittered_images_differ_at_every_reading_and_only_in_training(digits):
    moved = jittered(digits)
    assert torch.equal(moved["validation"][:4]["pixel_values"], digits["validation"][:4]["pixel_values"])
    torch.manual_seed(0)
    first, second = (torch.stack(moved["train"][:8]["pixel_values"]) for _ in range(2))
    assert first.shape == (8, 1, 8, 8)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, torch.stack(moved["train"][:8]["pixel_values"])), "they come from the global generator"
    assert moved["train"][:8]["labels"] == digits["train"][:8]["labels"].tolist()


def test_a_jitter_of_nothing_is_the_image_itself(digits):
    still = jittered(digits, degrees=0.0, shift=0.0)
    pixels = digits["train"][:8]["pixel_values"]
    torch.testing.assert_close(torch.stack(still["train"][:8]["pixel_values"]), pixels, rtol=0, atol=1e-5)
    down = jittered(digits, degrees=0.0, shift=1.0)["train"][:8]["pixel_values"]
    assert min(image.min() for image in down) >= pixels.min() - 1e-5, "what comes in from outside is background"


def test_dropout_is_the_vits():
    assert demo_image_classifier(["a", "b"], "vit", dropout=0.3).config.hidden_dropout_prob == 0.3
    with pytest.raises(ValueError, match="dropout must be 0 for kind='resnet'"):
        demo_image_classifier(["a", "b"], "resnet", dropout=0.3)
