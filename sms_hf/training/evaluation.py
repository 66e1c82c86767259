"""Scores: sacreBLEU through `evaluate`, and the token-weighted loss."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
import sacrebleu
import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase


class SacreBleu(evaluate.Metric):
    """
    Corpus BLEU of sacreBLEU as an `evaluate` metric that needs no Hub: `evaluate.load("sacrebleu")` downloads its script.

    `compute(predictions=[str], references=[str])` gives `score` in `[0, 100]`; report [`sacrebleu_signature`] with it.
    """

    def __init__(self, **options: Any):
        super().__init__(keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU (Post 2018).",
            citation="Post, A Call for Clarity in Reporting BLEU Scores, WMT 2018",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        return {"score": sacrebleu.BLEU().corpus_score(predictions, [references]).score}


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
    metric = SacreBleu()

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        tokens = _generated(prediction.predictions)
        hypotheses, references = decode(tokenizer, tokens), decode(tokenizer, prediction.label_ids)
        result = metric.compute(predictions=hypotheses, references=references)
        assert result is not None  # Only processes other than 0 of a distributed metric get None.
        return {"bleu": result["score"], "gen_len": float(np.mean(np.sum(_valid(tokenizer, tokens), axis=1)))}

    return compute


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


class WeightedMean:
    """Mean of batch losses, each weighted by the number of targets it is a mean of; Trainer weights by rows."""

    def __init__(self) -> None:
        self._total = 0.0
        self._targets = 0

    def add(self, loss: float, targets: int) -> None:
        if targets:
            self._total += loss * targets
            self._targets += targets

    @property
    def value(self) -> float | None:
        return self._total / self._targets if self._targets else None


def count_targets(labels: Tensor, shifted: bool) -> int:
    """
    How many targets the loss of a batch is a mean of: labels other than -100.

    Args:
        labels (`Tensor`): `(batch, ...)`.
        shifted (`bool`): Whether the loss drops the first position, as causal language models do.
    """
    return int((labels[..., 1:] if shifted and labels.dim() > 1 else labels).ne(-100).sum())


@torch.no_grad()
def all_finite(model: torch.nn.Module) -> bool:
    """Whether no parameter holds NaN or infinity."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
