"""Small models of the demo for images: two classifiers and a segmenter, from scratch."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
)

T = TypeVar("T", bound=PreTrainedModel)

DIGIT_SCALES = {"vit": 1, "resnet": 4}
"""Scale of [`demo_digits`] that each classifier is made for: a ResNet's stem leaves a quarter of the image's sides."""


def demo_image_classifier(
    labels: Sequence[str], kind: str = "vit", seed: int = 0, dropout: float = 0.0
) -> ViTForImageClassification | ResNetForImageClassification:
    """
    Small randomly initialised classifier of grey images; the caller's global generator is left alone.

    Args:
        labels (`Sequence[str]`): Names of the classes.
        kind (`str`, *optional*, defaults to `"vit"`): `"vit"`, for `(1, 8, 8)`, or `"resnet"`, with batch norm, for
            `(1, 32, 32)`.
        dropout (`float`, *optional*, defaults to `0.0`): Of the ViT, in [0, 1), while it is trained.
    """
    if kind not in IMAGE_CLASSIFIERS:
        raise ValueError(f"kind must be one of {sorted(IMAGE_CLASSIFIERS)}, got {kind!r}.")
    return _seeded(lambda: IMAGE_CLASSIFIERS[kind](_names(labels), dropout), seed)


def demo_segmenter(labels: Sequence[str], seed: int = 0) -> SegformerForSemanticSegmentation:
    """Small randomly initialised SegFormer for RGB images of any size; the caller's global generator is left alone."""
    config = SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        hidden_sizes=[16, 32, 64],
        num_attention_heads=[1, 2, 4],
        sr_ratios=[4, 2, 1],
        patch_sizes=[5, 3, 3],
        strides=[2, 2, 2],  # The usual 4 at the start would leave 8 x 8 cells of a scene.
        mlp_ratios=[2, 2, 2],
        decoder_hidden_size=32,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        initializer_range=0.1,  # At the usual 0.02, so narrow a model stays on a plateau for long.
        **_names(labels),
    )
    return _seeded(lambda: SegformerForSemanticSegmentation(config), seed)


def _vit(names: dict[str, Any], dropout: float) -> ViTForImageClassification:
    width = 64
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,
        **names,
    )
    return ViTForImageClassification(config)


def _resnet(names: dict[str, Any], dropout: float) -> ResNetForImageClassification:
    if dropout:
        raise ValueError(f"dropout must be 0 for kind='resnet', which has none, got {dropout}.")
    # A stem wider than this is initialised with weights so small that pruning by magnitude removes it as a whole.
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[12, 24, 48], depths=[1, 1, 1], layer_type="basic", **names
    )
    return ResNetForImageClassification(config)


IMAGE_CLASSIFIERS = {"vit": _vit, "resnet": _resnet}


def _names(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def _seeded(make: Callable[[], T], seed: int) -> T:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
