"""The classification recipe: columns, labels and heads, local files, clear errors, the demo."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import text_classification as recipe
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

import sms_hf
from sms_hf import tasks
from sms_hf.demo import demo_classifier, demo_word_tokenizer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "text_classification.py"
ROWS = {"text": ["good film", "bad film", "good"], "label": ["pos", "neg", "pos"]}


def settings(**changes):
    return dataclasses.replace(recipe.RecipeArguments(), **changes)


def run(*arguments):
    command = [sys.executable, str(RECIPE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)


@pytest.fixture
def write(tmp_path, datasets_cache):
    """Write columns to a file and return its name."""

    def make(name, columns):
        data, path = datasets.Dataset.from_dict(columns), tmp_path / name
        {".jsonl": data.to_json, ".csv": data.to_csv, ".parquet": data.to_parquet}[path.suffix](path)
        return str(path)

    return make


@pytest.fixture
def classifier(tmp_path):
    """A folder with a classifier of the labels given, and its tokenizer."""

    def make(labels):
        tokenizer, folder = demo_word_tokenizer(ROWS["text"], classifier=True), tmp_path / "model"
        demo_classifier(tokenizer, labels, seed=5).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize("name", ["text_classification.yaml", "text_classification_demo.yaml"])
def test_every_yaml_holds_settings_of_the_recipe(name, tmp_path):
    path, extra = ROOT / "recipes" / name, ["--demo"] if "demo" in name else []
    arguments = [str(path), *extra, "--output_dir", str(tmp_path), "--max_length", "32"]
    options, args = tasks.parse(arguments, str(RECIPE), recipe.RecipeArguments)
    values = yaml.safe_load(path.read_text())
    assert (options.max_length, args.target_sparsity) == (32, values["target_sparsity"])
    assert args.selection_metric == ("accuracy", True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("labels", [["pos", "neg", "pos"], [5, 2, 5]])
def test_local_files(kind, labels, write):
    path = write(f"rows.{kind}", {"text": ROWS["text"], "label": labels, "note": ["", "x", "y"]})
    corpus, names = recipe.load_corpus(settings(train_file=path, validation_file=path, max_eval_samples=1))
    assert names == ({"neg": "neg", "pos": "pos"} if labels[0] == "pos" else {2: "2", 5: "5"})
    assert sorted(corpus["train"].column_names) == ["label", "text"]
    assert (len(corpus["train"]), len(corpus["validation"]), "test" in corpus) == (3, 1, False)


def test_two_texts_and_other_columns(write):
    path = write("rows.jsonl", {"a": ["good"], "b": ["bad film"], "class": ["x"]})
    options = settings(
        train_file=path, validation_file=path, text_column="a", text_pair_column="b", label_column="class"
    )
    corpus, _ = recipe.load_corpus(options)
    tokenizer = demo_word_tokenizer(ROWS["text"], classifier=True)
    (row,) = recipe.tokenize(corpus, tokenizer, {"x": 1}, 16)["train"]
    words = ["[CLS]", "good", "[SEP]", "bad", "film", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
    assert (row["labels"], row["length"]) == (1, 6)
    with pytest.raises(SystemExit, match=r"missing: \['text', 'label'\]; it has \['a', 'b', 'class'\]"):
        recipe.load_corpus(settings(train_file=path, validation_file=path))


def test_a_label_that_training_does_not_know(write):
    train, other = write("train.csv", ROWS), write("val.csv", {"text": ["so so"], "label": ["mixed"]})
    with pytest.raises(SystemExit, match=r"\['neg', 'pos'\]\), got \['mixed'\] in the validation split"):
        recipe.load_corpus(settings(train_file=train, validation_file=other))
    missing = write("missing.csv", {"text": ["so so", "a"], "label": [None, "pos"]})
    with pytest.raises(SystemExit, match="names or whole numbers"):
        recipe.load_corpus(settings(train_file=missing, validation_file=train))


def test_hidden_labels_and_named_numbers(monkeypatch, capsys):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"sentence": ["a", "b"], "label": [1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    test = datasets.Dataset.from_dict(rows | {"label": [-1, -1]}, features=features)
    hub = datasets.DatasetDict(train=split, validation=split, test=test)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: hub)
    corpus, names = recipe.load_corpus(settings())
    assert (names, sorted(corpus)) == ({0: "no", 1: "yes"}, ["train", "validation"])
    assert "no test scores" in capsys.readouterr().out


def load(folder, names, seed):
    return tasks.model_for_classes(AutoModelForSequenceClassification, folder, names, seed, recipe.INSTEAD)


@pytest.mark.parametrize(
    ("theirs", "names", "order"),
    [
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"], ["negative", "positive"]),
        (["wrong", "correct"], ["correct", "wrong"], ["wrong", "correct"]),
        (["LABEL_0", "LABEL_1"], ["neg", "pos"], ["neg", "pos"]),
        (["NEGATIVE", "POSITIVE"], ["0", "1"], ["0", "1"]),
    ],
)
def test_a_head_that_fits_is_kept(theirs, names, order, classifier, capsys):
    folder = classifier(theirs)
    model, found = load(folder, names, seed=0)
    kept = AutoModelForSequenceClassification.from_pretrained(folder)
    assert found == order
    assert torch.equal(model.classifier.weight, kept.classifier.weight)
    assert list(model.config.id2label.values()) == (theirs if names == ["0", "1"] else order)
    assert "new are" not in capsys.readouterr().out


@pytest.mark.parametrize("names", [["neg", "pos"], ["a", "b", "c"]])
def test_a_head_that_does_not_fit_is_replaced_aloud_and_the_same_every_time(names, classifier, capsys):
    folder = classifier(["entailment", "contradiction"])
    models = [load(folder, names, seed)[0] for seed in (0, 0, 1)]
    old = AutoModelForSequenceClassification.from_pretrained(folder)
    heads = [model.classifier.weight for model in models]
    assert heads[0].shape[0] == len(names) == models[0].config.num_labels
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0][:2], old.classifier.weight)
    assert all(torch.equal(v, old.bert.state_dict()[k]) for k, v in models[0].bert.state_dict().items())
    assert "new are classifier.bias, classifier.weight" in capsys.readouterr().out.replace(
        "classifier.weight, classifier.bias", "classifier.bias, classifier.weight"
    )


def test_a_model_without_a_head_says_so(tmp_path, capsys):
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path)
    load(str(tmp_path), ["neg", "pos"], seed=0)
    assert "classifier.weight" in capsys.readouterr().out


def test_without_the_hub_one_sentence_says_what_to_do():
    with pytest.raises(SystemExit, match=r"^Cannot get 'nyu-mll/glue' from the Hugging Face Hub.*--demo.*--train_file"):
        recipe.load_corpus(settings())


def test_ctrl_c_while_the_dense_model_of_a_demo_trains(tmp_path):
    """As a terminal sends it: to all processes, of which the launchers pass it on once more, torchrun also as SIGTERM."""
    command = [sys.executable, "-m", "sms_hf", "train", "text_classification", "--demo", "--num_processes", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([*command, "--output_dir", str(tmp_path)], **pipes) as process:
        assert "demo: training a dense" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    (line,) = out.splitlines()
    assert re.fullmatch(r"\S+ SIG(INT|TERM): stopped, nothing finished is lost. Go on with --resume.", line)


def test_the_demo_ends_with_a_table_and_a_model(tmp_path):
    """The whole job on a fraction of the sentences: it is the path that is tested, not the quality."""
    few = ["--max_train_samples", "400", "--max_eval_samples", "60", "--max_test_samples", "60", "--dense_epochs", "1"]
    result = run("--demo", *few, "--num_candidates", "2", "--output_dir", str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line for line in result.stdout.splitlines() if re.match(r"(dense|phase-\d)\s{2,}", line)]
    assert [row.split()[0] for row in rows] == ["dense"] + ["phase-1"] * 5 + ["phase-2"] * 5
    assert "test accuracy" in result.stdout
    assert "Classes: correct, wrong; chosen on 60 validation rows, tested on 60." in result.stdout
    assert "new are" not in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"accuracy", "worst_class_accuracy"} <= set(report["phases"][1]["soup"]["metrics"])
    assert f'The model: BertForSequenceClassification.from_pretrained("{tmp_path}")' in result.stdout
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    label = int(model(**tokenizer("The dogs sleeps.", return_tensors="pt")).logits.argmax())
    assert model.config.id2label[label] in ("correct", "wrong")
    sms_hf.pack(tmp_path, keep_dense=False)
    again = run("--demo", *few, "--num_candidates", "2", "--output_dir", str(tmp_path), "--resume")
    assert f'The model: sms_hf.load("{tmp_path}")' in again.stdout, again.stderr[-3000:]
