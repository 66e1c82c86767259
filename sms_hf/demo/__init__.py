"""Offline English-German demo task: corpus, tokenizer and a small translation model."""

from .corpus import demo_corpus
from .translator import demo_optimizer, demo_tokenizer, demo_translator

__all__ = ["demo_corpus", "demo_optimizer", "demo_tokenizer", "demo_translator"]
