"""BLEU of generated translations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sacrebleu
from transformers import EvalPrediction, PreTrainedTokenizerBase

from .rows import RowStatistics, with_statistics


def sacrebleu_signature() -> str:
    """How sacreBLEU counts here (references, case, tokenisation, smoothing, version), to be printed beside every score."""
    bleu = sacrebleu.BLEU()
    bleu.corpus_score(["a"], [["a"]])  # The number of references is known only after a score.
    return str(bleu.get_signature())


def bleu_metrics(tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    `compute_metrics` for translation: `bleu`, corpus BLEU in `[0, 100]`, and `gen_len`, mean length of the output in tokens.

    For trainers with `predict_with_generate=True`. Predictions and labels: token ids `(sentences, length)`, padded.
    """
    from .sacrebleu_metric import SacreBleu

    metric = SacreBleu()

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        tokens = _generated(prediction.predictions)
        hypotheses, references = decode(tokenizer, tokens), decode(tokenizer, prediction.label_ids)
        result = metric.compute(predictions=hypotheses, references=references)
        assert result is not None  # Only processes other than 0 of a distributed metric get None.
        return {"bleu": result["score"], "gen_len": float(np.mean(np.sum(_valid(tokenizer, tokens), axis=1)))}

    def rows(prediction: EvalPrediction) -> np.ndarray:
        tokens = _generated(prediction.predictions)
        return bleu_statistics(decode(tokenizer, tokens), decode(tokenizer, prediction.label_ids))

    return with_statistics(compute, RowStatistics(rows, {"bleu": bleu_of_sums}))


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Of every sentence what corpus BLEU sums up: matching and all n-grams of each order, lengths of output and reference."""
    metric = sacrebleu.BLEU(effective_order=True)  # Only to be spared a warning: counts are the same.
    scores = [metric.sentence_score(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], dtype=np.float64)


def bleu_of_sums(sums: np.ndarray) -> float:
    """Corpus BLEU of such sums over sentences."""
    *counts, sys_len, ref_len = (int(value) for value in sums)
    orders = len(counts) // 2
    return sacrebleu.BLEU.compute_bleu(counts[:orders], counts[orders:], sys_len, ref_len, smooth_method="exp").score


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
