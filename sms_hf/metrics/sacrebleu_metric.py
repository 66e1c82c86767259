"""sacreBLEU as an `evaluate` metric. A module of its own, because importing `evaluate` takes seconds."""

from typing import Any

import datasets
import evaluate
import sacrebleu


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
