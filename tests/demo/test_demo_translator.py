"""Tokenizer and model of the demo: determinism, round trips, save and load."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from sms_hf.demo import demo_corpus, demo_tokenizer, demo_translator

_ROOT = Path(__file__).resolve().parents[2]
_PRINT_HASH = "import test_demo_translator; print(test_demo_translator.tokenizer_hash())"


def tokenizer_hash() -> str:
    """Digest of everything the tokenizer consists of; also called from a second process."""
    tokenizer = demo_tokenizer(demo_corpus(num_train=300, num_validation=5, num_test=5), vocab_size=400)
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus():
    return demo_corpus(num_train=4000, num_validation=200, num_test=20)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return demo_tokenizer(corpus)


def test_tokenizer_is_the_same_in_another_process():
    search_path = os.pathsep.join([str(_ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": search_path, "PYTHONHASHSEED": "12", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _PRINT_HASH]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.strip() == tokenizer_hash()


def test_validation_sentences_survive_the_round_trip(corpus, tokenizer):
    for pair in corpus["validation"]["translation"]:
        for text in pair.values():
            ids = tokenizer(text)["input_ids"]
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_padding_is_id_zero_and_ignored(tokenizer):
    batch = tokenizer(["The man sleeps.", "The man sleeps in the old garden."], padding=True)
    assert tokenizer.pad_token_id == 0
    assert batch["input_ids"][0][-1] == 0
    assert batch["attention_mask"][0][-1] == 0


def test_save_and_load(corpus, tokenizer, tmp_path):
    model = demo_translator(tokenizer).eval()
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    texts = [pair["en"] for pair in corpus["validation"]["translation"][:4]]
    assert loaded_tokenizer(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    batch = loaded_tokenizer(texts, return_tensors="pt", padding=True)
    generated = loaded.generate(**batch)
    assert torch.equal(generated, model.generate(**batch))
    assert generated[:, 0].tolist() == [tokenizer.pad_token_id] * 4
    assert generated.shape[1] <= model.generation_config.max_length


def test_generation_limit_covers_the_longest_sentence(corpus, tokenizer):
    model = demo_translator(tokenizer)
    longest = max(len(tokenizer(pair["de"])["input_ids"]) for pair in corpus["train"]["translation"])
    assert longest < model.generation_config.max_length


def test_output_embedding_is_tied(tokenizer):
    model = demo_translator(tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_model_depends_on_its_seed_only(tokenizer):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = demo_translator(tokenizer, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = demo_translator(tokenizer, seed=7), demo_translator(tokenizer, seed=8)
    states = [dict(model.named_parameters()) for model in (first, same, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
