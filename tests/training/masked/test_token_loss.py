"""Scores."""

import numpy as np
import pytest
import sacrebleu
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import EvalPrediction, PreTrainedTokenizerFast

from sms_hf.metrics import bleu_metrics, sacrebleu_signature
from sms_hf.metrics.sacrebleu_metric import SacreBleu
from sms_hf.training.masked.token_loss import WeightedMean, count_targets

WORDS = ["<pad>", "</s>", "the", "small", "dog", "cat", "sees", "a", "big", "house", "today"]


def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def ids(text, width, fill):
    tokens = [WORDS.index(word) for word in text.split()] + [1]
    return tokens + [fill] * (width - len(tokens))


HYPOTHESES = ["the small dog sees a big house", "the cat sees the dog today"]
REFERENCES = ["the small dog sees a big house today", "a cat sees the dog today"]


def test_bleu_is_sacrebleus_corpus_bleu_not_a_mean_over_batches():
    score = SacreBleu().compute(predictions=HYPOTHESES, references=REFERENCES)["score"]
    assert score == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    singles = [sacrebleu.corpus_bleu([h], [[r]]).score for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert score != pytest.approx(sum(singles) / 2)


def test_metrics_of_padded_token_ids():
    predictions = np.array([[0, *ids(text, 10, -100)] for text in HYPOTHESES])
    labels = np.array([ids(text, 9, -100) for text in REFERENCES])
    prediction = EvalPrediction(predictions=predictions, label_ids=labels)
    metrics = bleu_metrics(tokenizer(), ter=True)(prediction)
    assert metrics["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert metrics["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert metrics["ter"] == pytest.approx(100 * (1 + 1) / (8 + 6)), "a word is missing, a word is another"
    assert metrics["gen_len"] == (8 + 7) / 2
    assert set(metrics) == {"bleu", "chrf", "ter", "gen_len"}
    del metrics["ter"]
    assert bleu_metrics(tokenizer())(prediction) == metrics, "TER may take minutes: on request"


def test_logits_instead_of_tokens_are_an_error():
    logits = EvalPrediction(predictions=np.zeros((2, 3, 4)), label_ids=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="Set predict_with_generate=True"):
        bleu_metrics(tokenizer())(logits)


def test_signature_names_tokenisation_and_version():
    assert sacrebleu_signature() == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def test_the_signatures_of_chrf_and_ter():
    version = sacrebleu.__version__
    assert sacrebleu_signature("chrf") == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert sacrebleu_signature("ter") == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"


def test_weighted_mean_and_targets():
    mean = WeightedMean()
    assert mean.value is None
    mean.add(2.0, 1)
    mean.add(5.0, 3)
    mean.add(float("nan"), 0)
    assert mean.value == 17 / 4
    labels = torch.tensor([[5, 6, -100], [-100, 7, 8]])
    assert count_targets(labels, shifted=False) == 4
    assert count_targets(labels, shifted=True) == 3
    assert count_targets(torch.tensor([0, 1, -100]), shifted=True) == 2
