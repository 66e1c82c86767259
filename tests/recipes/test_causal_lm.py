"""The language modelling recipe: blocks without padding, files, clear errors, perplexity, the demo of both models."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import causal_lm as recipe
import datasets
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sms_hf import tasks
from sms_hf.demo import demo_language_model, demo_word_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "causal_lm.py"
LINES = ["the dog sleeps .", "a cat sees the dog .", "the cat sleeps ."]


def settings(**changes):
    return dataclasses.replace(recipe.RecipeArguments(), **changes)


def corpus_of(*texts):
    data = datasets.Dataset.from_dict({"text": list(texts)})
    return datasets.DatasetDict(train=data, validation=data)


def run(*arguments):
    command = [sys.executable, str(RECIPE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)


@pytest.fixture
def tokenizer():
    return demo_word_tokenizer(LINES)


@pytest.mark.parametrize("name", ["causal_lm.yaml", "causal_lm_demo.yaml"])
def test_every_yaml_holds_settings_of_the_recipe(name, tmp_path):
    path, extra = ROOT / "recipes" / name, ["--demo"] if "demo" in name else []
    arguments = [str(path), *extra, "--output_dir", str(tmp_path), "--block_size", "32"]
    options, args = tasks.parse(arguments, str(RECIPE), recipe.RecipeArguments)
    values = yaml.safe_load(path.read_text())
    assert (options.block_size, args.target_sparsity) == (32, values["target_sparsity"])
    assert args.selection_metric == ("loss", False)


def test_texts_end_with_the_end_of_text_and_lines_of_a_text_do_not(tokenizer):
    end = tokenizer.eos_token_id
    tokens = list(recipe.encode(["the dog", "a cat\n", "", "sleeps ."], tokenizer))
    assert [row[-1:] == [end] for row in tokens] == [True, False, False, True]
    assert [len(row) for row in tokens] == [3, 2, 0, 3]


def test_blocks_hold_all_tokens_in_their_order(tokenizer):
    blocks = recipe.make_blocks(corpus_of(*LINES), tokenizer, 4)["train"]
    tokens = [token for row in recipe.encode(LINES, tokenizer) for token in row]
    assert [token for row in blocks["input_ids"] for token in row] == tokens[: len(tokens) // 4 * 4]
    assert blocks["labels"][:] == blocks["input_ids"][:]
    assert blocks.column_names == ["input_ids", "labels"]


def test_too_short_a_text_and_too_long_a_block_are_refused(tokenizer):
    with pytest.raises(SystemExit, match=r"train split must fill a block of 60 tokens.*--block_size"):
        recipe.make_blocks(corpus_of(*LINES), tokenizer, 60)
    with pytest.raises(SystemExit, match=r"block_size must lie in \[2, 64\].* got 65"):
        recipe.make_task(demo_language_model(tokenizer), tokenizer, corpus_of(*LINES), 65)


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_local_files(kind, tmp_path):
    path, data = tmp_path / f"texts.{kind}", datasets.Dataset.from_dict({"line": LINES})
    if kind == "txt":
        path.write_text("\n".join(LINES))
    else:
        {"jsonl": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[kind](path)
    column = "text" if kind == "txt" else "line"
    options = settings(train_file=str(path), validation_file=str(path), text_column=column, max_train_samples=2)
    corpus = recipe.load_corpus(options)
    assert [text.rstrip("\n") for text in corpus["validation"]["text"]] == LINES
    assert len(corpus["train"]) == 2
    assert corpus["train"]["text"][0].endswith("\n") == (kind == "txt")
    if kind != "txt":
        with pytest.raises(SystemExit, match=r"column 'text' in the train data, it has \['line'\]"):
            recipe.load_corpus(settings(train_file=str(path), validation_file=str(path)))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(SystemExit, match=r"ends with one of \.json, .*\.txt, got .*a\.docx"):
        recipe.load_corpus(settings(train_file=str(tmp_path / "a.docx")))
    with pytest.raises(SystemExit, match=r"not found: nowhere\.txt"):
        recipe.load_corpus(settings(train_file="nowhere.txt"))


def test_a_report_of_losses_becomes_one_of_perplexities():
    phase = {"number": 1, "mean_score": 2.0, "best_score": 1.0, "candidates": [{"score": 1.0}, {"score": 3.0}]}
    report = {"metric": "loss", "dense": {"loss": 0.0}, "phases": [phase | {"soup": {"score": 1000.0}}]}
    converted, scores = tasks.as_perplexity(report, {"dense": 2.0})
    (changed,) = converted["phases"]
    assert (converted["metric"], converted["dense"]["perplexity"], scores) == (
        "perplexity",
        1.0,
        {"dense": math.exp(2)},
    )
    assert (changed["mean_score"], changed["best_score"]) == ((math.e + math.exp(3)) / 2, math.e)
    assert [c["score"] for c in changed["candidates"]] == [math.e, math.exp(3)]
    assert changed["soup"]["score"] == math.inf
    assert report["phases"][0]["mean_score"] == 2.0
    assert tasks.as_perplexity(report, None)[1] is None


def test_without_the_hub_one_sentence_says_what_to_do():
    with pytest.raises(
        SystemExit, match=r"^Cannot get 'Salesforce/wikitext' from the Hugging Face Hub.*--demo.*--train_file"
    ):
        recipe.load_corpus(settings())


def test_a_dense_model_of_the_other_kind_is_refused(tokenizer, tmp_path, make_args):
    demo_language_model(tokenizer, "llama").save_pretrained(tmp_path)
    options = settings(demo=True, dense_dir=str(tmp_path), max_train_samples=20)
    with pytest.raises(SystemExit, match=r"Expected a gpt2 in .*, found a llama\. Set another --output_dir"):
        recipe.load_task(options, make_args())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_demo_ends_with_perplexities_and_a_model(kind, tmp_path):
    """The whole job on a fraction of the sentences: it is the path that is tested, not the quality."""
    few = ["--max_train_samples", "600", "--max_eval_samples", "60", "--max_test_samples", "60", "--dense_epochs", "1"]
    result = run("--demo", "--demo_model", kind, *few, "--num_candidates", "2", "--output_dir", str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line for line in result.stdout.splitlines() if re.match(r"(dense|phase-\d)\s{2,}", line)]
    assert [row.split()[0] for row in rows] == ["dense"] + ["phase-1"] * 5 + ["phase-2"] * 5
    assert "test perplexity" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    shown = [float(row.split()[-2]) for row in rows]
    last = report["phases"][1]
    assert shown[0] == pytest.approx(math.exp(report["dense"]["loss"]), abs=0.006)
    assert shown[-3] == pytest.approx(sum(math.exp(c["score"]) for c in last["candidates"]) / 2, abs=0.006)
    assert shown[-1] == pytest.approx(math.exp(last["soup"]["metrics"]["loss"]), abs=0.006)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == kind
    tokens = model.generate(**tokenizer("The dog", return_tensors="pt", return_token_type_ids=False), max_new_tokens=5)
    assert tokenizer.decode(tokens[0]).startswith("the dog")
