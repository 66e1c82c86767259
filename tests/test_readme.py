"""The script in the README does what it says, on the demo's data and model in place of the Hub's."""

import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import transformers

from sms_hf import prune
from sms_hf.demo import demo_corpus, demo_tokenizer, demo_translator
from sms_hf.speed import layers
from sms_hf.speed.layers import FastLinear

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SCRIPT, TRAINERS, HUB, COMPACT, SPEED, DEPTH, TRIM, PARTS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.fixture
def corpus():
    return demo_corpus(num_train=48, num_validation=8, num_test=8)


def test_the_script_runs_as_it_stands(monkeypatch, tmp_path, capsys, corpus):
    tokenizer = demo_tokenizer(demo_corpus(num_train=600), vocab_size=400)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: corpus)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForSeq2SeqLM, "from_pretrained", lambda name: demo_translator(tokenizer))
    assert len(SCRIPT.splitlines()) <= 15
    exec(compile(SCRIPT, "README.md", "exec"), {})
    assert "soup (candidate" in capsys.readouterr().out
    assert (tmp_path / "soup" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_the_lines_about_other_trainers_run_as_they_stand():
    names: dict = {}
    exec(compile(TRAINERS, "README.md", "exec"), names)
    assert issubclass(names["SoupSFT"], names["SFTTrainer"])
    assert names["SoupSFTConfig"](output_dir="soup", target_sparsity=0.5, max_length=7, use_cpu=True).max_length == 7


def test_the_lines_about_the_hub_run_as_they_stand(monkeypatch, tmp_path, corpus):
    """Offline: the repository is a folder, and what is pushed is looked at elsewhere."""
    model = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    masks = prune(model, 0.9)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("soup")
    masks.save("soup/masks.safetensors")
    pushed = lambda folder, repo_id: shutil.copytree(folder, repo_id)  # noqa: E731
    monkeypatch.setattr("sms_hf.push_to_hub", pushed)
    exec(compile(HUB, "README.md", "exec"), {})
    prune(model, 0.5, within=None, pattern="neurons", scope="uniform")
    exec(compile(COMPACT, "README.md", "exec"), {"model": model})
    small = transformers.T5ForConditionalGeneration.from_pretrained("small")
    assert small.config.d_ff == model.config.d_ff // 2


def test_the_lines_about_speed_run_as_they_stand(monkeypatch, tmp_path, corpus):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layers, "SMALLEST", 0)  # This model's layers are so small that they would be left alone.
    model = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    prune(model, 0.9, scope="uniform")
    tokens = torch.tensor([[5, 6, 7, 1]])
    expected = model.generate(tokens, max_new_tokens=5)
    exec(compile(SPEED, "README.md", "exec"), {"model": model})
    assert torch.equal(model.generate(tokens, max_new_tokens=5), expected)
    assert isinstance(model.lm_head, FastLinear)


def test_the_lines_about_depth_run_as_they_stand(corpus):
    tokens = torch.tensor([[5, 6, 7, 1]])
    dense = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    names = {"model": dense, "batches": [{"input_ids": tokens, "labels": tokens}]}
    exec(compile(DEPTH, "README.md", "exec"), names)
    assert (names["model"].config.num_decoder_layers, dense.config.num_decoder_layers) == (1, 2)


def test_the_lines_about_vocabularies_run_as_they_stand(corpus):
    tokenizer = demo_tokenizer(demo_corpus(num_train=600), vocab_size=400)
    pairs = [pair["translation"] for pair in corpus["train"]][:4]
    texts, targets = ([pair[language] for pair in pairs] for language in ("en", "de"))
    names = {"model": demo_translator(tokenizer), "tokenizer": tokenizer, "train_texts": texts, "target_texts": targets}
    exec(compile(TRIM, "README.md", "exec"), names)
    assert len(names["tokenizer"]) == names["small"].config.vocab_size < len(tokenizer)


def test_the_parts_run_as_they_stand(monkeypatch, tmp_path, corpus):
    model = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        model.save_pretrained(tmp_path / f"run-{i}")
    exec(compile(PARTS, "README.md", "exec"), {"model": model, "score": lambda folder: len(folder.name)})
    assert (tmp_path / "masks.safetensors").is_file()
    assert (tmp_path / "soup" / "model.safetensors").is_file()
