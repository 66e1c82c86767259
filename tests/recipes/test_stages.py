"""Layers, neurons and weights go in one run of a recipe, each from what the one before has left."""

import re
from pathlib import Path

import pytest
import text_classification
import torch
import wmt16_t5
from transformers import AutoModelForSeq2SeqLM, BertConfig, BertForSequenceClassification

from sms_hf import load, tasks
from sms_hf.demo import demo_corpus, demo_tokenizer, demo_translator
from sms_hf.sparsity import find_prunable
from sms_hf.tasks.stages import Stage, make_smaller, parse_stages

PAIRS = demo_corpus(num_train=40)["train"]["translation"]


@pytest.fixture
def translator(tmp_path):
    """A folder with a dense T5 of two layers a stack, and one with a small corpus; arguments that name them."""
    tokenizer = demo_tokenizer(demo_corpus(num_train=300), vocab_size=400)
    demo_translator(tokenizer).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    for split in ("train", "val", "test"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{pair[language]}\n" for pair in PAIRS))
    settings = {"max_steps": 2, "num_phases": 1, "num_candidates": 2, "target_sparsity": 0.5, "report_to": "none"}
    settings |= {"use_cpu": "true", "disable_tqdm": "true", "output_dir": tmp_path / "run"}
    named = ["--model_name_or_path", str(tmp_path / "dense"), "--parallel_dir", str(tmp_path)]
    return named + [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def run(*arguments):
    tasks.run(list(arguments), wmt16_t5.__file__, wmt16_t5.RecipeArguments, wmt16_t5.load_task)


def test_layers_then_neurons_then_weights(translator, tmp_path, capsys):
    run(*translator, "--smaller_first", "layers:0.5", "neurons:0.25")
    out = capsys.readouterr().out
    assert (
        "smaller first: 50% of the layers, then 25% of the neurons, a run each; then what is left to a sparsity of 0.5"
        in out
    )
    headings = ["=== 1 of 3: 50% of the layers", "=== 2 of 3: 25% of the neurons", "=== 3 of 3: what is left, "]
    places = [out.index(heading) for heading in headings]
    assert places == sorted(places)
    assert out.count("test bleu") == 3, "a table each"

    dense = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "dense")
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    assert (small.config.num_layers, small.config.num_decoder_layers) == (dense.config.num_layers // 2,) * 2
    assert small.config.d_ff == dense.config.d_ff * 3 // 4
    weights = find_prunable(small).parameters.values()
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * sum(w.numel() for w in weights)), "of what is left"
    assert f"{small.num_parameters():,} of {dense.num_parameters():,} weights" in out

    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    run(*translator, "--smaller_first", "layers:0.5", "neurons:0.25", "--resume")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole
    assert "candidate-1 (seed" not in capsys.readouterr().out, "nothing is trained again"


def test_a_run_that_ended_between_two_stages_goes_on(translator, tmp_path, monkeypatch):
    class Ended(Exception):
        pass

    def end(*_):
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr("sms_hf.tasks.stages.shrink", end)
        with pytest.raises(Ended):
            run(*translator, "--smaller_first", "neurons:0.5")
    first = tmp_path / "run" / "_smaller-1-neurons" / "model.safetensors"
    made = first.stat().st_mtime_ns
    run(*translator, "--smaller_first", "neurons:0.5", "--resume")
    assert first.stat().st_mtime_ns == made
    assert load(tmp_path / "run").config.d_ff == load(tmp_path / "dense").config.d_ff // 2


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("neuron:0.5", "smaller_first must be one of .*'neurons'.*, got 'neuron'"),
        ("neurons", "entries such as 'neurons:0.5'"),
        ("neurons:half", "entries such as 'neurons:0.5'"),
        ("neurons:1", r"fractions in \(0, 1\), got 'neurons:1'"),
    ],
)
def test_what_is_no_stage_is_named(asked, says):
    with pytest.raises((ValueError, tasks.RecipeError), match=says):
        parse_stages([asked])


def test_unequal_phases_are_refused(translator):
    with pytest.raises(tasks.RecipeError, match="phases of equal length"):
        run(*translator, "--smaller_first", "neurons:0.5", "--phase_shares", "1.0")


def test_what_a_stock_model_cannot_lose_is_said_before_anything_is_trained(tmp_path):
    """BERT's configuration has no size of a head."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    task = tasks.Task(BertForSequenceClassification(BertConfig(**sizes)), train=None, validation=None)
    argv = ["--demo", "--output_dir", str(tmp_path / "run")]
    _, args = tasks.parse(argv, text_classification.__file__, text_classification.RecipeArguments)
    with pytest.raises(tasks.RecipeError, match="50% of the heads, which BertForSequenceClassification cannot lose"):
        make_smaller(task, args, [Stage("neurons", 0.5), Stage("heads", 0.5)], resume=False)
    assert not Path(tmp_path / "run").exists()
    assert re.fullmatch("50% of the heads", str(Stage("heads", 0.5)))
