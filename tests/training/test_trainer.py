"""The phases, end to end, on models of a second."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import collate, reversal, tiny_t5
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sms_hf import Masks, SparseSoupArguments, SparseSoupMixin, SparseSoupTrainer, format_report, load


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def phases(trainer):
    return Path(trainer.args.output_dir) / "_run"


def test_two_phases_end_in_one_sparse_model(make_trainer):
    trainer = make_trainer({"soup_method": "uniform", "keep_candidates": True})
    output = trainer.train()
    root, run = Path(trainer.args.output_dir), phases(trainer)

    # 20,480 prunable weights; phases of 50 % and 75 %; masks only shrink.
    first, second = (
        Masks.load(run / "phase-1/soup/masks.safetensors"),
        Masks.load(run / "phase-2/soup/masks.safetensors"),
    )
    assert (first.num_weights, first.num_kept, second.num_kept) == (20480, 10240, 5120)
    assert second.is_within(first)
    assert trainer.masks.fingerprint() == second.fingerprint()
    assert Masks.load(root / "masks.safetensors").fingerprint() == second.fingerprint()

    # The soup is the mean of its candidates, which share the parent's mask; the next parent is the pruned soup.
    for phase, masks in (("phase-1", first), ("phase-2", second)):
        a, b = weights(run / phase / "candidate-1"), weights(run / phase / "candidate-2")
        soup = weights(run / phase / "soup")
        assert not same(a, b)
        for name in soup:
            assert torch.equal(soup[name], ((a[name].double() + b[name].double()) / 2).float()), name
        for name, mask in masks.items():
            assert not a[name][~mask].any()
            assert not soup[name][~mask].any()
    parent, soup = weights(run / "phase-2/parent"), weights(run / "phase-1/soup")
    assert all(torch.equal(parent[name], soup[name] * mask) for name, mask in second.items())

    # The trainer holds the soup, the folder holds it, and the numbers are those of the report.
    assert same(weights(root), weights(run / "phase-2/soup"))
    report = json.loads((root / "report.json").read_text())
    assert report == json.loads(json.dumps(trainer.report))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(report["phases"][1]["soup"]["score"])
    assert output.metrics["phase_2_soup_loss"] == report["phases"][1]["soup"]["score"]
    assert output.global_step == 4 * 6
    scores = [candidate["score"] for candidate in report["phases"][0]["candidates"]]
    assert report["phases"][0]["mean_score"] == pytest.approx(sum(scores) / 2)
    assert report["phases"][0]["best_score"] == min(scores)


def test_the_folder_loads_without_importing_sms_hf(make_trainer):
    trainer = make_trainer()
    trainer.train()
    code = (
        "import sys, torch; from transformers import AutoModelForSeq2SeqLM;"
        f"m, info = AutoModelForSeq2SeqLM.from_pretrained({trainer.args.output_dir!r}, output_loading_info=True);"
        "assert 'sms_hf' not in sys.modules; assert not any(info[k] for k in ('missing_keys', 'unexpected_keys'));"
        "print(sum(int((p == 0).sum()) for n, p in m.named_parameters() if '.layer.' in n and p.dim() == 2))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) >= 15360  # 75 % of 20,480


def test_greedy_is_traced_and_never_below_the_best_candidate(make_trainer):
    trainer = make_trainer({"num_candidates": 3, "num_phases": 1, "soup_method": "greedy"})
    trainer.train()
    (phase,) = trainer.report["phases"]
    trials = phase["soup"]["trials"]
    assert len(trials) == 3
    assert trials[0] == {
        "ingredients": [min(phase["candidates"], key=lambda c: c["score"])["name"]],
        "score": phase["best_score"],
        "accepted": True,
        "standard_error": None,
        "sure": None,
    }
    accepted = [trial for trial in trials if trial["accepted"]]
    assert phase["soup"]["ingredients"] == accepted[-1]["ingredients"]
    assert phase["soup"]["score"] == pytest.approx(accepted[-1]["score"])
    assert phase["soup"]["score"] <= phase["best_score"] + 1e-6


def test_nothing_is_scored_twice(make_trainer):
    """Dense, two candidates, one trial: the soup is the trial or the best candidate, and needs no evaluation of its own."""
    calls = []

    def count(prediction):
        calls.append(1)
        return {}

    make_trainer({"num_phases": 1, "soup_method": "greedy"}, compute_metrics=count).train()
    assert len(calls) == 4


def test_only_soups_stay_on_disk_unless_candidates_are_kept(make_trainer):
    trainer = make_trainer()
    trainer.train()
    folders = sorted(path.parent.relative_to(phases(trainer)) for path in phases(trainer).rglob("model.safetensors"))
    assert [str(folder) for folder in folders] == ["phase-1/soup", "phase-2/soup"]


def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer, tmp_path):
    whole = make_trainer({"output_dir": str(tmp_path / "whole"), "keep_candidates": True})
    whole.train()
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for lost in ("report.json", "model.safetensors", "_run/phase-2/phase.json", "_run/phase-2/candidate-2.json"):
        (cut / lost).unlink()
    kept = cut / "_run/phase-2/candidate-1.json"
    stamp = kept.stat().st_mtime_ns
    resumed = make_trainer({"output_dir": str(cut), "keep_candidates": True})
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(cut), weights(tmp_path / "whole"))
    assert kept.stat().st_mtime_ns == stamp, "a finished candidate was trained again"


def test_a_candidate_goes_on_from_its_trainer_checkpoint(make_trainer, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4 and "phase-2" in args.output_dir:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 3, "num_candidates": 1}
    whole = make_trainer({"output_dir": str(tmp_path / "whole"), **saving})
    whole.train()
    cut = make_trainer({"output_dir": str(tmp_path / "cut"), **saving}, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert (phases(cut) / "phase-2/candidate-1/checkpoint-3/masks.safetensors").is_file()
    resumed = make_trainer({"output_dir": str(tmp_path / "cut"), **saving})
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert not list(phases(resumed).rglob("checkpoint-*"))


def test_a_folder_with_another_run_is_refused(make_trainer):
    make_trainer().train()
    with pytest.raises(ValueError, match=r"holds a run. Continue it with train\(resume_from_checkpoint=True\)"):
        make_trainer().train()
    with pytest.raises(ValueError, match=r"got others: arguments.learning_rate: 0.003 -> 0.0001. Resume with the same"):
        make_trainer({"learning_rate": 1e-4}).train(resume_from_checkpoint=True)
    other = tiny_t5()
    other.config.dropout_rate, other.config._name_or_path = 0.25, "moved"
    with pytest.raises(ValueError, match=r"got others: model.config.dropout_rate: [^;]+ -> 0.25. Resume with the same"):
        make_trainer(model=other).train(resume_from_checkpoint=True)


def test_a_run_that_stopped_before_pruning_does_not_bar_the_folder(make_trainer):
    with pytest.raises(ValueError, match="metric_for_best_model"):
        make_trainer({"metric_for_best_model": "bleu", "num_phases": 1}).train()
    trainer = make_trainer({"num_phases": 1})
    trainer.train()
    assert trainer.report["settings"]["arguments"]["metric_for_best_model"] is None


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        (
            {"metric_for_best_model": "bleu"},
            {},
            "metric_for_best_model must be a metric that the evaluation returns (loss)",
        ),
        ({"target_modules": ["nowhere"]}, {}, "Expected at least one prunable weight"),
        ({}, {"train_dataset": reversal(0)}, "train_dataset must hold at least one example"),
        ({}, {"eval_dataset": reversal(0)}, "eval_dataset must hold at least one example"),
        ({}, {"eval_dataset": None}, "Expected train_dataset and eval_dataset"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(make_trainer, changes, given, words):
    trainer = make_trainer(changes, **given)
    with pytest.raises(ValueError, match=r".") as error:
        trainer.train()
    assert words in str(error.value)
    assert not list(Path(trainer.args.output_dir).rglob("model.safetensors"))


def test_a_model_that_is_sparser_than_asked_for_is_refused(make_trainer):
    model = tiny_t5()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layer." in name and parameter.dim() == 2:
                parameter.zero_()
                parameter[:1] = 1.0
    with pytest.raises(ValueError, match=r"already is .* sparse .* Ask for a higher sparsity"):
        make_trainer({"target_sparsity": 0.5, "num_phases": 1}, model=model).train()


def test_one_optimizer_for_all_candidates_is_refused(make_trainer):
    model = tiny_t5()
    trainer = make_trainer(model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        trainer.train()


def test_a_varied_learning_rate_that_would_have_no_effect_is_refused(make_trainer):
    settings = {"vary": {"learning_rate": [1e-3, 1e-4]}}
    trainer = make_trainer(settings, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs sets the learning rate itself"):
        trainer.train()
    assert make_trainer({"num_phases": 1}, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1})).train()


def test_positional_arguments_as_trainer_takes_them(make_args):
    data = reversal(8)
    trainer = SparseSoupTrainer(tiny_t5(), make_args(num_phases=1), collate, data, data)
    trainer.train()
    assert len(trainer.report["phases"][0]["candidates"]) == 2


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="args must be SparseSoupTrainingArguments, got Seq2SeqTrainingArguments"):
        SparseSoupTrainer(model=tiny_t5(), args=Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_a_diverged_candidate_is_reported_and_left_out(make_trainer):
    settings = {"num_phases": 1, "num_candidates": None, "vary": {"learning_rate": [3e-3, 1e30]}, "max_grad_norm": 0.0}
    trainer = make_trainer({**settings, "optim": "sgd", "soup_method": "uniform"})
    trainer.train()
    good, bad = trainer.report["phases"][0]["candidates"]
    assert good["failure"] is None
    assert "finite" in bad["failure"] or "nan" in bad["failure"]
    assert trainer.report["phases"][0]["soup"]["ingredients"] == ["candidate-1"]
    assert "(failed)" in format_report(trainer.report)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_a_run_without_a_candidate_left_ends_with_a_clear_error(make_trainer):
    trainer = make_trainer({"num_phases": 1, "learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0})
    with pytest.raises(
        RuntimeError,
        match=r"at least min_candidates=1 of the 2 .* 2 failed .*not finite after step .*a lower learning_rate",
    ):
        trainer.train()
    assert not (Path(trainer.args.output_dir) / "model.safetensors").exists()


def test_what_varies_reaches_the_candidates(make_trainer):
    seen = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            seen[Path(args.output_dir).name] = (args.weight_decay, optimizer.param_groups[0]["lr"], state.max_steps)

        def __deepcopy__(self, memo):
            return self

    vary = {"weight_decay": [0.0, 0.1], "num_train_epochs": [1, 2]}
    settings = {"num_phases": 1, "num_candidates": None, "vary": vary, "lr_scheduler_type": "constant"}
    make_trainer(settings, callbacks=[Look()]).train()
    assert seen == {
        "candidate-1": (0.0, 3e-3, 6),
        "candidate-2": (0.0, 3e-3, 12),
        "candidate-3": (0.1, 3e-3, 6),
        "candidate-4": (0.1, 3e-3, 12),
    }


def test_callbacks_start_fresh_for_every_candidate(make_trainer):
    counts = []

    class Count(TrainerCallback):
        def __init__(self):
            self.steps = 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

        def on_train_end(self, *args, **kwargs):
            counts.append(self.steps)

    saving = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "num_phases": 1}
    make_trainer(saving, callbacks=[Count(), EarlyStoppingCallback(early_stopping_patience=1)]).train()
    assert counts == [6, 6]


def test_an_evaluation_in_bf16_before_training_leaves_no_trace(make_trainer, tmp_path):
    """Accelerate marks and wraps a model that it has prepared; copies of it would train without autocast."""
    plain = make_trainer({"bf16": True, "output_dir": str(tmp_path / "a")})
    plain.train()
    evaluated = make_trainer({"bf16": True, "output_dir": str(tmp_path / "b")})
    evaluated.evaluate()
    evaluated.train()
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def classification(rows):
    return [
        {**{k: v for k, v in row.items() if k != "labels"}, "labels": row["input_ids"][0] % 2} for row in reversal(rows)
    ]


def collate_classes(rows):
    batch = collate([{**row, "labels": [row["labels"]]} for row in rows])
    return batch | {"labels": batch["labels"][:, 0]}


def language(rows):
    return [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in reversal(rows)]


def collate_language(rows):
    batch = collate([{**row, "labels": row["input_ids"]} for row in rows])
    return batch


BERT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
KINDS = {
    "causal LM": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)),
        language,
        collate_language,
    ),
    "masked LM": (lambda: BertForMaskedLM(BertConfig(**BERT)), language, collate_language),
    "classification": (lambda: BertForSequenceClassification(BertConfig(**BERT)), classification, collate_classes),
}


@pytest.mark.parametrize(("make", "data", "collator"), KINDS.values(), ids=KINDS)
def test_models_of_other_kinds(make_trainer, make, data, collator):
    torch.manual_seed(0)

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    metrics = (
        {"compute_metrics": accuracy, "eval_dataset": data(8)} if data is classification else {"eval_dataset": data(8)}
    )
    settings = {"metric_for_best_model": "accuracy"} if data is classification else {}
    trainer = make_trainer(settings, model=make(), train_dataset=data(16), data_collator=collator, **metrics)
    trainer.train()
    masks = Masks.load(Path(trainer.args.output_dir) / "masks.safetensors")
    assert masks.num_kept == masks.num_weights - round(0.75 * masks.num_weights)
    masks.check(type(trainer.model).from_pretrained(trainer.args.output_dir))
    if data is classification:
        assert trainer.report["metric"] == "accuracy"
        assert 0.0 <= trainer.report["phases"][1]["soup"]["score"] <= 1.0


@dataclass
class MyArguments(SparseSoupArguments, TrainingArguments):
    factor: float = 1.0


class Scaled(Trainer):
    def __init__(self, *args, power=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = power

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        scale = self.args.factor**self.power
        return (result[0] * scale, result[1]) if return_outputs else result * scale


class SoupScaled(SparseSoupMixin, Scaled):
    pass


def test_the_mixin_stands_on_another_trainer_with_its_own_signature(tmp_path):
    args = MyArguments(
        output_dir=str(tmp_path), target_sparsity=0.5, num_phases=1, num_candidates=2, factor=2.0, use_cpu=True,
        report_to="none", save_strategy="no", num_train_epochs=1, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = reversal(12)
    trainer = SoupScaled(
        model=tiny_t5(), args=args, train_dataset=data, eval_dataset=data, data_collator=collate, power=3
    )
    trainer.train()
    batch = collate(list(data))
    loss = trainer.model.eval()(**batch).loss.item()
    assert trainer.report["phases"][0]["soup"]["score"] == pytest.approx(8 * loss, rel=1e-5)


def test_a_collator_with_a_random_generator_does_not_join_candidates(make_trainer, tmp_path):
    """Masked language modelling: the second candidate must not depend on what the first one drew."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[MASK]": 1, **{f"w{i}": i for i in range(2, 64)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")),
        pad_token="[PAD]",
        mask_token="[MASK]",
    )

    def second(folder, seeds):
        torch.manual_seed(0)
        trainer = make_trainer(
            {"output_dir": str(tmp_path / folder), "num_phases": 1, "num_candidates": None, "vary": {"seed": seeds},
             "keep_candidates": True, "soup_method": "uniform"},
            model=BertForMaskedLM(BertConfig(**BERT)),
            train_dataset=language(16),
            eval_dataset=language(8),
            data_collator=DataCollatorForLanguageModeling(tokenizer, seed=5),
        )  # fmt: skip
        trainer.train()
        return weights(phases(trainer) / f"phase-1/candidate-{len(seeds)}")

    assert same(second("both", [1, 2]), second("alone", [2]))


def test_scores_on_a_test_set_are_those_of_the_models_on_disk(make_trainer):
    trainer = make_trainer({"keep_candidates": True})
    trainer.train()
    scores = trainer.evaluate_run(reversal(7, seed=9), dense=tiny_t5())
    assert list(scores) == ["dense"] + [
        f"phase-{n}/{name}" for n in (1, 2) for name in ("candidate-1", "candidate-2", "soup")
    ]
    assert scores["phase-2/soup"] == pytest.approx(trainer.evaluate(reversal(7, seed=9))["eval_loss"])
    table = format_report(trainer.report, scores)
    assert "mean candidate" in table
    assert "test loss" in table
    assert len(table.splitlines()) == 2 + 1 + 2 * 5


# ---- The final files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparse_format", "weights"),
    [
        ("dense", {"model.safetensors"}),
        ("compact", {"model.sparse.safetensors"}),
        ("both", {"model.safetensors", "model.sparse.safetensors"}),
    ],
)
def test_the_final_model_has_the_form_asked_for(make_trainer, sparse_format, weights):
    trainer = make_trainer({"sparse_format": sparse_format, "num_phases": 1})
    trainer.train()
    root = Path(trainer.args.output_dir)
    assert {path.name for path in root.glob("model*")} == weights
    loaded = load(root)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(loaded.parameters(), trainer.model.parameters(), strict=True))
    trainer.masks.check(loaded)


def test_a_run_leaves_lineage_and_card(make_trainer, capsys):
    trainer = make_trainer({"num_phases": 1})
    trainer.train()
    root = Path(trainer.args.output_dir)
    lineage = json.loads((root / "sparse_soup.json").read_text())
    assert lineage["mask_fingerprint"] == Masks.load(root / "masks.safetensors").fingerprint()
    assert lineage["sparsity"] == trainer.masks.sparsity()
    assert [c["score"] for c in lineage["phases"][0]["candidates"]] == [
        c["score"] for c in trainer.report["phases"][0]["candidates"]
    ]
    assert lineage["measured"]["load_seconds"]["dense"] > 0
    assert lineage["measured"]["samples_per_second"] > 0
    assert str(root) not in json.dumps(lineage)
    card = (root / "README.md").read_text()
    assert f"{100 * trainer.masks.sparsity():.4g} % of its prunable weights removed" in card
    assert str(root) not in card
    scores = trainer.evaluate_run(reversal(8, seed=3))
    assert json.loads((root / "sparse_soup.json").read_text())["test"] == scores
    assert "test loss" in (root / "README.md").read_text()


def test_a_measurement_that_fails_costs_nothing_but_a_line(make_trainer, capsys, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError("no such device")

    monkeypatch.setattr(T5ForConditionalGeneration, "from_pretrained", broken)
    trainer = make_trainer({"num_phases": 1})
    trainer.train()
    assert "no measurement for the model card: OSError: no such device" in capsys.readouterr().out
    root = Path(trainer.args.output_dir)
    assert json.loads((root / "sparse_soup.json").read_text())["measured"] is None
    assert (root / "model.safetensors").is_file()


def test_an_unknown_form_is_refused(make_args):
    with pytest.raises(ValueError, match=r"sparse_format must be one of \['dense', 'compact', 'both'\], got 'zip'"):
        make_args(sparse_format="zip")
