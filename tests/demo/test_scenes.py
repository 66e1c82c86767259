"""The scenes of the demo: the same from the same seed, every class in its shape; and the model for them."""

import pytest
import torch

from sms_hf.demo import SCENE_CLASSES, demo_scenes, demo_segmenter


@pytest.fixture(scope="module")
def scenes():
    return demo_scenes(num_train=40, num_validation=10, num_test=10)


def test_shapes_of_rows(scenes):
    assert {split: len(data) for split, data in scenes.items()} == {"train": 40, "validation": 10, "test": 10}
    row = scenes["train"][0]
    assert (row["pixel_values"].shape, row["pixel_values"].dtype) == ((3, 32, 32), torch.float32)
    assert (row["labels"].shape, row["labels"].dtype) == ((32, 32), torch.int64)


def test_every_class_occurs_and_the_background_most(scenes):
    share = torch.bincount(scenes["train"][:]["labels"].flatten()).double() / (40 * 32 * 32)
    assert len(share) == len(SCENE_CLASSES)
    assert share[1:].min() > 0.04
    assert 0.5 < share[0] < 0.7


def test_the_same_arguments_give_the_same_scenes_and_splits_are_disjoint(scenes):
    again = demo_scenes(num_train=60, num_validation=10, num_test=10)
    for split in ("validation", "test"):
        assert torch.equal(again[split][:]["pixel_values"], scenes[split][:]["pixel_values"])
    assert torch.equal(again["train"][:40]["labels"], scenes["train"][:]["labels"])
    other = demo_scenes(num_train=1, num_validation=10, num_test=1, seed=1)
    assert not torch.equal(other["validation"][:]["labels"], scenes["validation"][:]["labels"])
    pixels = torch.cat([data[:]["pixel_values"] for data in again.values()])
    assert len(pixels.flatten(1).unique(dim=0)) == 80


def test_a_split_without_scenes_is_refused():
    with pytest.raises(ValueError, match="num_test must be at least 1, got 0"):
        demo_scenes(num_test=0)


def test_the_model_is_made_from_a_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (demo_segmenter(SCENE_CLASSES, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.decode_head.classifier.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape == (2, 5, 16, 16)
    assert first.config.id2label[1] == "disc"
