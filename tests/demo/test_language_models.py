"""Sentences, judgements, word tokenizer and the small models of the classification and language modelling demos."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sms_hf import find_prunable
from sms_hf.demo import (
    demo_classifier,
    demo_corpus,
    demo_judgements,
    demo_language_model,
    demo_sentences,
    demo_word_tokenizer,
)

TEXTS = ["The old man sleeps.", "Why do the dogs sleep?"]


def test_sentences_are_the_english_side_of_the_corpus():
    sentences, corpus = demo_sentences(200, 20, 30), demo_corpus(200, 20, 30)
    assert {name: len(data) for name, data in sentences.items()} == {"train": 200, "validation": 20, "test": 30}
    for name, data in corpus.items():
        assert sentences[name]["text"][:] == [pair["en"] for pair in data["translation"]]


def test_a_wrong_sentence_differs_from_a_correct_one_in_the_form_of_one_verb():
    judged, sentences = demo_judgements(1000, 20, 20)["train"], demo_sentences(1000, 20, 20)["train"]
    labels = judged["label"][:]
    assert set(labels) == {"correct", "wrong"}
    assert 400 < labels.count("wrong") < 600
    pairs = set()
    for text, label, sentence in zip(judged["text"], labels, sentences["text"], strict=True):
        words, original = (re.findall(r"\w+", t.lower()) for t in (text, sentence))
        changed = [(a, b) for a, b in zip(original, words, strict=True) if a != b]
        assert len(changed) == (label == "wrong")
        assert (text[0].isupper(), text[-1]) == (True, sentence[-1])
        pairs |= set(changed)
    assert {("is", "are"), ("are", "is"), ("does", "do"), ("was", "were")} <= pairs


def test_judgements_depend_on_their_seed_only():
    first, same, other = demo_judgements(50, 10, 10), demo_judgements(50, 10, 10), demo_judgements(50, 10, 10, seed=1)
    assert first["train"][:] == same["train"][:]
    assert first["train"][:] != other["train"][:]


@pytest.mark.parametrize("classifier", [True, False])
def test_tokenizer_splits_words_and_comes_back_from_its_files(classifier, tmp_path):
    tokenizer = demo_word_tokenizer(TEXTS, classifier)
    tokenizer.save_pretrained(tmp_path)
    tokens = tokenizer("The man sleeps today.")["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path)("The man sleeps today.")["input_ids"] == tokens
    words = ["the", "man", "sleeps", tokenizer.unk_token, "."]
    assert tokenizer.convert_ids_to_tokens(tokens) == (["[CLS]", *words, "[SEP]"] if classifier else words)
    assert tokenizer.pad_token_id == 0
    if classifier:
        assert tokenizer("man", "dogs")["input_ids"].count(tokenizer.sep_token_id) == 2
    else:
        assert tokenizer.eos_token == "</s>"


def make(kind, seed=0):
    tokenizer = demo_word_tokenizer(TEXTS, classifier=kind == "bert")
    if kind == "bert":
        return demo_classifier(tokenizer, ["a", "b", "c"], seed)
    return demo_language_model(tokenizer, kind, seed)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_models_depend_on_their_seed_only(kind):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = make(kind, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = make(kind, seed=7).state_dict(), make(kind, seed=8).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in first.state_dict().items())
    name = next(iter(find_prunable(first).parameters))
    assert not torch.equal(same[name], other[name])


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("bert", AutoModelForSequenceClassification),
        ("gpt2", AutoModelForCausalLM),
        ("llama", AutoModelForCausalLM),
    ],
)
def test_models_come_back_from_their_files(kind, auto, tmp_path):
    model = make(kind).eval()
    model.save_pretrained(tmp_path)
    loaded, ids = auto.from_pretrained(tmp_path), torch.tensor([[3, 4, 5]])
    assert type(loaded) is type(model)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    if kind == "bert":
        assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_another_kind_of_language_model_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of \['gpt2', 'llama'\], got 'opt'"):
        demo_language_model(demo_word_tokenizer(TEXTS), "opt")
