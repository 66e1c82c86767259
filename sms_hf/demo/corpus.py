"""Parallel corpus of the demo, in the format of the wmt data sets."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from .grammar.pairs import Pair, sentence_pairs


def demo_corpus(num_train: int = 16000, num_validation: int = 256, num_test: int = 400, seed: int = 0) -> DatasetDict:
    """English-German sentence pairs in splits that share no English and no German sentence.

    Each row is ``{"translation": {"en": ..., "de": ...}}``, so code written for the wmt data sets works unchanged.
    The same arguments give the same sentences on every machine.  The held-out splits are drawn first: a larger
    training split leaves them as they are.
    """
    sizes = {"validation": num_validation, "test": num_test, "train": num_train}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"expected num_{name} >= 1, got {size}; remedy: ask for at least one sentence pair")
    pairs = _distinct_pairs(sum(sizes.values()), seed)
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = _dataset(pairs[start : start + size])
        start += size
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def _distinct_pairs(count: int, seed: int) -> list[Pair]:
    """The first ``count`` pairs whose English and German sentences have both not been seen before."""
    pairs: list[Pair] = []
    seen_english: set[str] = set()
    seen_german: set[str] = set()
    for english, german in sentence_pairs(seed):
        if english in seen_english or german in seen_german:
            continue
        seen_english.add(english)
        seen_german.add(german)
        pairs.append((english, german))
        if len(pairs) == count:
            break
    return pairs


def _dataset(pairs: list[Pair]) -> Dataset:
    return Dataset.from_dict({"translation": [{"en": english, "de": german} for english, german in pairs]})
