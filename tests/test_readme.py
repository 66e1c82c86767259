"""The code of the README and of the pages that it leads to does what it says, on the demo's data and model, not the Hub's."""

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

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)


(SCRIPT,) = blocks("README.md")
TRAINERS = blocks("docs/guides/lora.md")[0]
(PARTS,) = blocks("docs/guide.md")
HUB = blocks("docs/hub.md")[0]


def block(word):
    """That of docs/inference.md which imports a name."""
    return next(code for code in blocks("docs/inference.md") if re.search(rf"import .*\b{word}\b", code))


SPEED, COMPACT, DEPTH, TRIM = map(block, ("speed_up", "shrink", "drop_layers", "trim_vocabulary"))


def anchors(text):
    """Of the headings of a page, as hosts of Markdown make them, and of the names in the reference."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    names = re.findall(r"^::: (\S+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | {*names}


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


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
    exec(compile(TRAINERS, "lora.md", "exec"), names)
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
    exec(compile(HUB, "hub.md", "exec"), {})
    prune(model, 0.5, within=None, pattern="neurons", scope="uniform")
    exec(compile(COMPACT, "inference.md", "exec"), {"model": model})
    small = transformers.T5ForConditionalGeneration.from_pretrained("small")
    assert small.config.d_ff == model.config.d_ff // 2


def test_the_lines_about_speed_run_as_they_stand(monkeypatch, tmp_path, corpus, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layers, "SMALLEST", 0)  # This model's layers are so small that they would be left alone.
    model = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    prune(model, 0.9, scope="uniform")
    tokens = torch.tensor([[5, 6, 7, 1]])
    expected = model.generate(tokens, max_new_tokens=5)
    names = {"model": model, "tokens": {"inputs": tokens, "max_new_tokens": 5}}
    exec(compile(SPEED, "inference.md", "exec"), names)
    assert torch.equal(names["model"].generate(tokens, max_new_tokens=5), expected)
    assert "over dense" in capsys.readouterr().out
    assert type(model.lm_head) is torch.nn.Linear, "slowed down at the end"


def test_the_lines_about_depth_run_as_they_stand(corpus):
    tokens = torch.tensor([[5, 6, 7, 1]])
    dense = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    names = {"model": dense, "batches": [{"input_ids": tokens, "labels": tokens}]}
    exec(compile(DEPTH, "inference.md", "exec"), names)
    assert (names["model"].config.num_decoder_layers, dense.config.num_decoder_layers) == (1, 2)


def test_the_lines_about_vocabularies_run_as_they_stand(corpus):
    tokenizer = demo_tokenizer(demo_corpus(num_train=600), vocab_size=400)
    pairs = [pair["translation"] for pair in corpus["train"]][:4]
    texts, targets = ([pair[language] for pair in pairs] for language in ("en", "de"))
    names = {"model": demo_translator(tokenizer), "tokenizer": tokenizer, "train_texts": texts, "target_texts": targets}
    exec(compile(TRIM, "inference.md", "exec"), names)
    assert len(names["tokenizer"]) == names["small"].config.vocab_size < len(tokenizer)


def test_the_parts_run_as_they_stand(monkeypatch, tmp_path, corpus):
    model = demo_translator(demo_tokenizer(corpus, vocab_size=200))
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        model.save_pretrained(tmp_path / f"run-{i}")
    exec(compile(PARTS, "guide.md", "exec"), {"model": model, "score": lambda folder: len(folder.name)})
    assert (tmp_path / "masks.safetensors").is_file()
    assert (tmp_path / "soup" / "model.safetensors").is_file()
