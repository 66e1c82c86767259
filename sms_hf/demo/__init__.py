"""Offline demo tasks: data made or found on the spot, tokenizers and small models."""

from .corpus import demo_corpus
from .digits import demo_digits, jittered
from .language_models import demo_classifier, demo_language_model
from .scenes import SCENE_CLASSES, demo_scenes
from .sentences import demo_judgements, demo_sentences, demo_word_tokenizer
from .translator import demo_optimizer, demo_tokenizer, demo_translator
from .vision import DIGIT_SCALES, demo_image_classifier, demo_segmenter

__all__ = [
    "DIGIT_SCALES",
    "SCENE_CLASSES",
    "demo_classifier",
    "demo_corpus",
    "demo_digits",
    "demo_image_classifier",
    "demo_judgements",
    "demo_language_model",
    "demo_optimizer",
    "demo_scenes",
    "demo_segmenter",
    "demo_sentences",
    "demo_tokenizer",
    "demo_translator",
    "demo_word_tokenizer",
    "jittered",
]
