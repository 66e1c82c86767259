"""BLEU, chrF and TER of generated translations."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import sacrebleu
from transformers import EvalPrediction, PreTrainedTokenizerBase

from .rows import RowStatistics, with_statistics

SCORES: dict[str, Callable[[], Any]] = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF, "ter": sacrebleu.TER}
"""Metric -> how sacreBLEU counts it by default."""


def sacrebleu_signature(metric: str = "bleu") -> str:
    """
    How sacreBLEU counts here (references, case, tokenisation, smoothing, version), to be printed beside every score.

    Args:
        metric (`str`, *optional*, defaults to `"bleu"`): Or `"chrf"`, `"ter"`.
    """
    counted = SCORES[metric]()
    counted.corpus_score(["a"], [["a"]])  # The number of references is known only after a score.
    return str(counted.get_signature())


def bleu_metrics(tokenizer: PreTrainedTokenizerBase, ter: bool = False) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for translation, of the whole corpus: `bleu` and `chrf` in `[0, 100]`, and `gen_len`, mean length of the
    output in tokens.

    For trainers with `predict_with_generate=True`. Predictions and labels: token ids `(sentences, length)`, padded.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the translator.
        ter (`bool`, *optional*, defaults to `False`): Also `ter`, in percent: edits over words of the reference. Less is better,
            and more than 100 is possible. Off, because its search for moved words takes a second for a thousand good
            translations, and more than a minute where their words are out of order.
    """
    from .sacrebleu_metric import SacreBleu

    metric, names = SacreBleu(), ("bleu", "chrf", "ter") if ter else ("bleu", "chrf")

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        tokens = _generated(prediction.predictions)
        hypotheses, references = decode(tokenizer, tokens), decode(tokenizer, prediction.label_ids)
        result = metric.compute(predictions=hypotheses, references=references)
        assert result is not None  # Only processes other than 0 of a distributed metric get None.
        others = {name: SCORES[name]().corpus_score(hypotheses, [references]).score for name in names[1:]}
        return {"bleu": result["score"], **others, "gen_len": float(np.mean(np.sum(_valid(tokenizer, tokens), axis=1)))}

    def rows(prediction: EvalPrediction) -> np.ndarray:
        tokens = _generated(prediction.predictions)
        return sentence_statistics(decode(tokenizer, tokens), decode(tokenizer, prediction.label_ids), names)

    return with_statistics(compute, RowStatistics(rows, corpus_scores(names)))


def sentence_statistics(hypotheses: Sequence[str], references: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """
    Of every sentence what these corpus scores sum up, side by side: numbers of n-grams and of words, lengths, edits.

    By what sacreBLEU's own bootstrap takes them from; it has no public name for it.
    """
    of_metrics = [
        make()._extract_corpus_statistics(hypotheses, [references]) for make in (SCORES[name] for name in names)
    ]
    return np.hstack([np.array(rows, dtype=np.float64) for rows in of_metrics])


def corpus_scores(names: Sequence[str]) -> dict[str, Callable[[np.ndarray], float]]:
    """Metric -> its value on a corpus from the sums of [`sentence_statistics`] of these metrics."""
    ends = np.cumsum([0, *(sentence_statistics(["a"], ["a"], [name]).shape[1] for name in names)])

    def of_sums(make: Callable[[], Any], begin: int, end: int) -> Callable[[np.ndarray], float]:
        metric = make()
        return lambda sums: metric._compute_score_from_stats(sums[begin:end]).score

    return {name: of_sums(SCORES[name], *place) for name, place in zip(names, pairwise(ends), strict=True)}


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Any) -> list[str]:
    """Texts of padded token ids `(sentences, length)`; -100 counts as padding."""
    tokens = np.where(np.asarray(tokens) < 0, tokenizer.pad_token_id, tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _generated(predictions: Any) -> np.ndarray:
    tokens = predictions[0] if isinstance(predictions, tuple) else predictions
    if np.ndim(tokens) != 2 or not np.issubdtype(np.asarray(tokens).dtype, np.integer):
        raise ValueError(
            f"BLEU needs generated token ids (sentences, length), got an array of shape {np.shape(tokens)}. "
            "Set predict_with_generate=True."
        )
    return np.asarray(tokens)


def _valid(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> np.ndarray:
    return (tokens >= 0) & (tokens != tokenizer.pad_token_id)
