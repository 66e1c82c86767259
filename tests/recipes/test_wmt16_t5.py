"""The translation recipe: data in every form it promises, settings from YAML and command line, clear errors, the demo."""

import dataclasses
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import sentencepiece
import wmt16_t5 as recipe
import yaml
from hub.server import Hub
from hub.translators import marian_folder
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from sms_hf import tasks
from sms_hf.demo import demo_corpus, demo_tokenizer, demo_translator

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "wmt16_t5.py"
CORPUS = ROOT.parent / "shared" / "data" / "multi30k"
MODEL = ROOT.parent / "shared" / "models" / "t5-tiny-multi30k-en-de"

PULLED_BY_NAME = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model, tokenizer = (auto.from_pretrained("tester/marian-soup") for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
tokens = model.generate(**tokenizer(sys.argv[1], return_tensors="pt"), max_new_tokens=30)
print(json.dumps({
    "sum": sum(float(p.detach().double().abs().sum()) for p in model.parameters()),
    "zeros": sum(int((p == 0).sum()) for p in model.parameters()),
    "text": tokenizer.batch_decode(tokens, skip_special_tokens=True)[0],
}))
"""
"""Run in a fresh process by somebody who knows only the name."""

PAIRS = [{"en": f"number {i}", "de": f"Nummer {i}"} for i in range(6)]


def parse(argv):
    return tasks.parse(argv, str(RECIPE), recipe.RecipeArguments)


def settings(**changes):
    return dataclasses.replace(recipe.RecipeArguments(), **changes)


def write(path, text):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)


def run(*arguments, **environment):
    command = [sys.executable, str(RECIPE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=os.environ | environment)


@pytest.mark.parametrize("name", ["wmt16_t5.yaml", "wmt16_t5_demo.yaml", "multi30k.yaml"])
def test_every_yaml_holds_settings_of_the_recipe(name, tmp_path):
    path, extra = ROOT / "recipes" / name, ["--demo"] if "demo" in name else []
    options, args = parse([str(path), *extra, "--output_dir", str(tmp_path), "--num_train_epochs", "0.5"])
    values = yaml.safe_load(path.read_text())
    assert args.num_train_epochs == 0.5, "the command line wins"
    assert args.target_sparsity == values["target_sparsity"]
    assert args.predict_with_generate
    assert args.metric_for_best_model == "bleu"
    assert options.demo == bool(extra)


def test_an_unknown_setting_is_named(tmp_path):
    (tmp_path / "s.yaml").write_text("target_sparsity: 0.5\ntarget_sparcity: 0.9\n")
    with pytest.raises(SystemExit, match="target_sparcity"):
        parse([str(tmp_path / "s.yaml")])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--no_such_option"], r"got --no_such_option\. See --help\.$"),
        (["--target_sparcity", "0.5"], r"got --target_sparcity 0\.5\. Did you mean '--target_sparsity'\? See --help"),
        (["--num_train_epoch=2"], "Did you mean '--num_train_epochs'"),
        (["--target_sparsity", "much"], r"argument --target_sparsity.*: invalid float value: 'much'\. See --help"),
        (["--pruning_scope", "unifrom"], "argument --pruning_scope.*: invalid choice: 'unifrom'"),
        (["--eval_strategy", "sometimes"], "argument --eval_strategy.*: invalid choice"),
        (["--warmup_steps", "-1"], "warmup_steps"),
    ],
)
def test_an_option_that_does_not_exist_or_does_not_fit_is_one_sentence(given, says, capsys):
    with pytest.raises(SystemExit, match=says) as error:
        parse(given)
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().err


def test_parallel_files_plain_and_gzipped(tmp_path):
    write(tmp_path / "train.en", "a dog\na cat\n")
    write(tmp_path / "train.de", "ein Hund\neine Katze\n")
    write(tmp_path / "val.en.gz", "one\u2028line\n")
    write(tmp_path / "val.de", "eine Zeile\n")
    write(tmp_path / "test_2016.en.gz", "the end\n")
    write(tmp_path / "test_2016.de.gz", "das Ende\n")
    corpus = recipe.load_corpus(settings(parallel_dir=str(tmp_path)))
    assert corpus["train"]["translation"][:] == [{"en": "a dog", "de": "ein Hund"}, {"en": "a cat", "de": "eine Katze"}]
    assert corpus["validation"]["translation"][0] == {"en": "one\u2028line", "de": "eine Zeile"}
    assert corpus["test"]["translation"][0] == {"en": "the end", "de": "das Ende"}
    assert len(recipe.load_corpus(settings(parallel_dir=str(tmp_path), max_train_samples=1))["train"]) == 1


def test_unequal_line_counts_say_both(tmp_path):
    write(tmp_path / "train.en", "a\nb\nc\n")
    write(tmp_path / "train.de", "a\nb\n")
    with pytest.raises(SystemExit, match=r"equal numbers of lines, got 3 in .*train\.en and 2 in .*train\.de"):
        recipe.load_corpus(settings(parallel_dir=str(tmp_path)))


def test_a_missing_translation_and_a_missing_split_are_named(tmp_path):
    write(tmp_path / "train.en", "a\n")
    with pytest.raises(SystemExit, match=r"needs its translation train\.de"):
        recipe.load_corpus(settings(parallel_dir=str(tmp_path)))
    write(tmp_path / "train.de", "a\n")
    with pytest.raises(SystemExit, match=r"missing: \['validation'\]"):
        recipe.load_corpus(settings(parallel_dir=str(tmp_path)))


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "columns.csv"])
def test_files_with_a_translation_column_or_one_per_language(tmp_path, kind):
    path = tmp_path / f"pairs.{kind}"
    data = datasets.Dataset.from_dict({"translation": PAIRS})
    if kind in ("jsonl", "json"):
        path.write_text("".join(json.dumps({"translation": pair}) + "\n" for pair in PAIRS))
    elif kind == "csv":
        datasets.Dataset.from_dict({"translation": [json.dumps(pair) for pair in PAIRS]}).to_csv(path)
    elif kind == "columns.csv":
        datasets.Dataset.from_list(PAIRS).to_csv(path)
    else:
        data.to_parquet(path)
    corpus = recipe.load_corpus(settings(train_file=str(path), validation_file=str(path)))
    assert corpus["train"]["translation"][:] == PAIRS
    assert "test" not in corpus


@pytest.mark.usefixtures("datasets_cache")
def test_a_file_without_the_languages_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"translation": {"en": "a", "fr": "un"}}) + "\n")
    with pytest.raises(SystemExit, match=r"needs a `translation` column with \('en', 'de'\)"):
        recipe.load_corpus(settings(train_file=str(path)))
    with pytest.raises(SystemExit, match=r"not found: nowhere\.csv"):
        recipe.load_corpus(settings(train_file="nowhere.csv"))


PIECES = [(piece, -float(i)) for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "\u2581b"])]
SMALL = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}


def multilingual(kind, folder):
    """A tokenizer of this kind with a handful of pieces, and a model for it."""
    if kind == "mbart":
        tokenizer, make = MBartTokenizer(vocab=PIECES), (MBartConfig, MBartForConditionalGeneration)
    elif kind == "mbart50":
        tokenizer, make = MBart50Tokenizer(vocab=PIECES), (MBartConfig, MBartForConditionalGeneration)
    elif kind == "nllb":
        vocabulary = {piece: i for i, (piece, _) in enumerate([*PIECES, ("b", 0.0)])}
        tokenizer = NllbTokenizer(vocab=vocabulary, merges=[("\u2581", "b")])
        make = (M2M100Config, M2M100ForConditionalGeneration)
    else:
        text = io.StringIO("ab ba aab bba\n" * 20)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text,
            model_prefix=str(folder / "spm"),
            vocab_size=8,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        pieces = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "\u2581": 6}
        (folder / "vocab.json").write_text(json.dumps(pieces))
        tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"), src_lang="en", tgt_lang="de")
        make = (M2M100Config, M2M100ForConditionalGeneration)
    return tokenizer, make[1](make[0](vocab_size=len(tokenizer) + 8, **SMALL, **HEADS))


@pytest.mark.parametrize(
    ("kind", "codes", "token"),
    [
        ("mbart", ("en_XX", "de_DE"), "de_DE"),
        ("mbart50", ("en_XX", "de_DE"), "de_DE"),
        ("m2m100", ("en", "de"), "__de__"),
        ("nllb", ("eng_Latn", "deu_Latn"), "deu_Latn"),
    ],
)
def test_multilingual_models_are_told_the_languages(kind, codes, token, tmp_path):
    tokenizer, model = multilingual(kind, tmp_path)
    options = settings(source_code=codes[0], target_code=codes[1])
    recipe.set_languages(model, tokenizer, options)
    expected = tokenizer.convert_tokens_to_ids(token)
    generation = model.generation_config
    if kind == "mbart":  # The language ends the labels, and so starts the decoder's input.
        assert (model.config.decoder_start_token_id, generation.decoder_start_token_id) == (expected, expected)
    else:
        assert generation.forced_bos_token_id == expected
    data = recipe.tokenize(datasets.DatasetDict(train=datasets.Dataset.from_dict({"translation": [{"en": "a", "de": "b"}]})),
                           tokenizer, "", options)  # fmt: skip
    assert expected in data["train"][0]["labels"]
    assert expected not in data["train"][0]["input_ids"]


def test_a_language_that_the_tokenizer_does_not_know(tmp_path):
    tokenizer, model = multilingual("mbart", tmp_path)
    with pytest.raises(SystemExit, match=r"does not know the language 'de'.*--target_code"):
        recipe.set_languages(model, tokenizer, settings())


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_outside_its_range(dropout, tmp_path):
    MBartConfig(**SMALL, **HEADS).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"dropout must lie in \[0, 1\)"):
        recipe.load_model(settings(model_name_or_path=str(tmp_path), dropout=dropout))


def test_without_the_hub_one_sentence_says_what_to_do(tmp_path):
    result = run("--output_dir", str(tmp_path), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode != 0
    (sentence,) = [line for line in result.stderr.splitlines() if "Hugging Face Hub" in line]
    assert sentence.startswith("Cannot get 'wmt/wmt16' from the Hugging Face Hub")
    assert "--demo" in sentence
    assert "--parallel_dir" in sentence
    assert "Traceback" not in result.stderr


def test_help_lists_our_options_and_trainers(tmp_path):
    result = run("--help")
    assert result.returncode == 0
    for option in ("--demo", "--parallel_dir", "--target_sparsity", "--vary", "--learning_rate"):
        assert option in result.stdout
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        "usage: wmt16_t5.py [FILE.yaml] [--option VALUE ...]",
        "",
        "Prune a translator and make a sparse model soup of it.",
    ]
    assert "--demo" in "\n".join(lines[:30]), "no list of all options before the list of options"


def test_the_demo_ends_with_a_table_and_a_model(tmp_path):
    """The whole job on a fraction of the sentences: it is the path that is tested, not the quality."""
    small = [
        "--max_train_samples",
        "600",
        "--max_eval_samples",
        "40",
        "--max_test_samples",
        "40",
        "--dense_epochs",
        "1",
    ]
    result = run("--demo", *small, "--num_train_epochs", "1", "--num_candidates", "2", "--output_dir", str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    rows = [line for line in lines if re.match(r"(dense|phase-\d)\s{2,}", line)]
    assert len(rows) == 1 + 2 * (2 + 3)
    assert [row.split()[0] for row in rows] == ["dense"] + ["phase-1"] * 5 + ["phase-2"] * 5
    assert any("test bleu" in line for line in lines)
    assert any("nrefs:1|case:mixed|eff:no|tok:13a" in line for line in lines)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.generation_config.max_length > 20
    tokens = model.generate(**tokenizer("the dog sees the cat.", return_tensors="pt"))
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]


@pytest.mark.skipif(
    not (CORPUS.is_dir() and MODEL.is_dir()), reason="Multi30k and its translator are not beside the project"
)
def test_the_real_corpus_and_translator_on_a_few_sentences(tmp_path):
    few = [
        "--max_train_samples",
        "256",
        "--max_eval_samples",
        "32",
        "--max_test_samples",
        "32",
        "--num_train_epochs",
        "1",
    ]
    where = ["--parallel_dir", str(CORPUS), "--model_name_or_path", str(MODEL), "--output_dir", str(tmp_path)]
    result = run("recipes/multi30k.yaml", *few, *where, "--num_candidates", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dense"]["bleu"] > 25
    # Of 40 % each: 36 matrices of 128 x 128 and 12 of 128 x 256.
    assert report["phases"][1]["parent"]["num_kept"] == 36 * 6554 + 12 * 13107


def test_a_marian_with_sentencepiece_is_pruned_souped_and_pulled_back_by_name(tmp_path):
    """What users of opus-mt models do: a local Marian, JSON Lines of pairs, the Hub, and a translation with the soup."""
    phrasebook, run_dir = demo_corpus(40, 1, 1)["train"], tmp_path / "soup"
    marian = marian_folder(tmp_path / "marian", phrasebook["translation"])
    phrasebook.to_json(tmp_path / "phrasebook.jsonl")
    arguments = [*("--train_file", str(tmp_path / "phrasebook.jsonl")), *("--num_train_epochs", "20")]
    arguments += [*("--validation_file", str(tmp_path / "phrasebook.jsonl")), *("--learning_rate", "3e-3")]
    arguments += [*("--model_name_or_path", str(marian)), *("--num_candidates", "2")]
    arguments += [*("--target_sparsity", "0.5"), *("--per_device_train_batch_size", "8"), *("--warmup_steps", "0")]
    arguments += [*("--output_dir", str(run_dir)), "--push_to_hub", *("--hub_model_id", "tester/marian-soup")]
    hub = Hub()

    def process(*arguments, home):
        env = hub.environment(tmp_path / home) | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=280, cwd=ROOT, env=env
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    try:
        process(str(RECIPE), *arguments, home="pusher")
        pulled = json.loads(process("-c", PULLED_BY_NAME, phrasebook["translation"][0]["en"], home="puller"))
    finally:
        hub.close()
    last = json.loads((run_dir / "report.json").read_text())["phases"][-1]
    model = AutoModelForSeq2SeqLM.from_pretrained(run_dir)
    assert pulled["sum"] == sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    assert pulled["zeros"] >= last["parent"]["num_weights"] - last["parent"]["num_kept"]
    assert last["soup"]["score"] > 80, "BLEU of sentences known by heart"
    assert pulled["text"] == phrasebook["translation"][0]["de"]


def test_columns_of_other_names(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"src": "a dog", "tgt": "ein Hund"}\n')
    files = {"train_file": str(tmp_path / "train.jsonl"), "validation_file": str(tmp_path / "train.jsonl")}
    corpus = recipe.load_corpus(settings(**files, source_column="src", target_column="tgt"))
    assert corpus["train"][0]["translation"] == {"en": "a dog", "de": "ein Hund"}
    with pytest.raises(
        SystemExit, match=r"got \['src', 'tgt'\]. Set --source_column and --target_column. Did you mean 'src'"
    ):
        recipe.load_corpus(settings(**files, source_column="scr"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--parallel_dir", "NOWHERE"], "Expected a folder with train.en and train.de at"),
        (["--demo", "--vary", '{"sed": [1, 2]}'], "Did you mean 'seed'?"),
        (["--demo", "--target_sparsity", "1.5"], "target_sparsity must lie in [0, 1)"),
    ],
)
def test_what_the_user_can_mend_is_told_without_a_traceback(tmp_path, arguments, says):
    arguments = [argument.replace("NOWHERE", str(tmp_path / "nowhere")) for argument in arguments]
    result = run("--output_dir", str(tmp_path / "run"), *arguments)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(tmp_path):
    """Not every ValueError is the user's: this one comes from the middle of a library."""
    with pytest.raises(json.JSONDecodeError):
        tasks.run(
            ["--demo", "--output_dir", str(tmp_path)], str(RECIPE), recipe.RecipeArguments, lambda *_: json.loads("{")
        )


def test_fewer_layers(tmp_path, capsys):
    tokenizer = demo_tokenizer(demo_corpus(num_train=300), vocab_size=400)
    model = demo_translator(tokenizer)
    depth = model.config.num_layers
    model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    for split in ("train", "val"):
        for language in ("en", "de"):
            lines = "".join(f"{pair[language]}\n" for pair in PAIRS)
            (tmp_path / f"{split}.{language}").write_text(lines)
    own, args = parse(
        ["--model_name_or_path", str(tmp_path / "dense"), "--parallel_dir", str(tmp_path), "--decoder_layers", "1"]
        + ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    )
    task = recipe.load_task(own, args)
    assert (task.model.config.num_layers, task.model.config.num_decoder_layers) == (depth, 1)
    assert re.search(
        r"layers that stay, by the loss of 6 training rows: encoder: 0, .*; decoder: \d\n", capsys.readouterr().out
    )
