"""Test scores that are compared: the soup's with the dense model's and the best candidate's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import collate, reversal, tiny_t5
from sacrebleu.significance import PairedTest

from sms_hf.metrics.bleu import SCORES, corpus_scores, sentence_statistics
from sms_hf.report import read_lineage
from sms_hf.report.comparison import describe_comparison
from sms_hf.report.schema import Comparison
from sms_hf.soup.noise import difference_interval, resample_sums
from sms_hf.tasks.outcome import show_outcome
from sms_hf.tasks.task import Task
from sms_hf.training.run.afterwards import compare_scores
from sms_hf.training.scoring import Score

# ---- The interval ------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_difference_is_the_textbooks():
    """Of 400 rows one model has 20 right that the other has not: 0.05 +- 1.96 * sqrt(0.05 * 0.95 / 400)."""
    before = np.array([[0.0, 1.0]] * 400)
    after = before.copy()
    after[:20, 0] = 1
    samples = [resample_sums(rows, lambda sums: sums[0] / sums[1]) for rows in (after, before)]
    margin = 1.96 * (0.05 * 0.95 / 400) ** 0.5
    assert difference_interval(*samples) == pytest.approx((0.05 - margin, 0.05 + margin), abs=0.003)
    assert difference_interval(samples[1], samples[0])[1] == -difference_interval(*samples)[0]


def translations(rate: float, seed: int, rows: int = 300) -> list[str]:
    """The references with so many words replaced; the words of a row are its own in every system."""
    draw = np.random.default_rng(seed)
    return [" ".join(w if draw.random() >= rate else "wrong" for w in line.split()) for line in references(rows)]


def references(rows: int = 300) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(f"w{draw.integers(500)}" for _ in range(draw.integers(6, 14))) for _ in range(rows)]


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize(
    ("rate", "more_than_noise"), [(0.10, True), (0.17, True), (0.198, False), (0.2, False), (0.29, True)]
)
def test_of_translations_it_decides_as_sacrebleus_paired_bootstrap(rate, more_than_noise, name):
    dense, soup = translations(0.2, seed=1), translations(rate, seed=2)
    rows = [sentence_statistics(texts, references(), [name]) for texts in (soup, dense)]
    samples = [resample_sums(of_system, corpus_scores([name])[name]) for of_system in rows]
    low, high = difference_interval(*samples)
    systems = [("dense", dense), ("soup", soup)]
    _, results = PairedTest(systems, {name: SCORES[name]()}, [references()], test_type="bs", n_samples=1000)()
    (theirs,) = [found for metric, found in results.items() if metric != "System"]
    # Its p is one-sided: the share of samples that a gain of nothing would need. An interval of 95 % leaves 2.5 % there.
    sizes = np.abs(np.subtract(*samples))
    ours = float((sizes - sizes.mean() > abs(theirs[1].score - theirs[0].score)).mean())
    assert ours == pytest.approx(theirs[1].p_value, abs=0.04)
    assert (not low <= 0 <= high) == (theirs[1].p_value < 0.025) == more_than_noise
    # Each score's own interval, of which sacreBLEU gives the half, comes from the same sampling.
    for scores, result in zip(samples, reversed(theirs), strict=True):
        below, above = np.quantile(scores, [0.025, 0.975])
        assert (above - below) / 2 == pytest.approx(result.ci, rel=0.1)
        assert np.mean(scores) == pytest.approx(result.mean, abs=0.2)


# ---- The sentence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "interval", "words"),
    [
        (0.33, [-0.2, 0.9], "+0.33 bleu, 95 % interval -0.20 to 0.90: within noise"),
        (0.83, [0.2, 1.4], "+0.83 bleu, 95 % interval 0.20 to 1.40: more than noise"),
        (-0.5, [-0.9, -0.1], "-0.50 bleu, 95 % interval -0.90 to -0.10: more than noise"),
        (0.0123, [-0.002, 0.03], "+0.0123 bleu, 95 % interval -0.0020 to 0.0300: within noise"),
        (-0.001, [-0.3, 0.3], "0.00 bleu, 95 % interval -0.30 to 0.30: within noise"),
    ],
)
def test_a_sentence_says_what_a_difference_is_worth(difference, interval, words):
    comparison = Comparison(model="phase-2/soup", against="dense", difference=difference, interval=interval)
    assert describe_comparison(comparison, "bleu") == f"soup against dense: {words}"


def test_a_candidate_is_named_by_its_number():
    comparison = Comparison(model="phase-1/soup", against="phase-1/candidate-3", difference=1.0, interval=[0.0, 2.0])
    assert describe_comparison(comparison, "bleu").startswith("soup against best candidate (3): +1.00 bleu")


# ---- Which models ------------------------------------------------------------------------------------------------------


def report(ingredients):
    candidates = [{"name": f"candidate-{n}", "score": score} for n, score in ((1, 30.0), (2, 32.0))]
    soup = {"ingredients": [f"candidate-{n}" for n in ingredients]}
    return {"phases": [{"number": 1, "candidates": candidates, "best_score": 32.0, "soup": soup}]}


def scores():
    """A score and three samples of each; candidate 1 is the better one on the test set."""
    known = {"dense": 31.0, "phase-1/candidate-1": 40.0, "phase-1/candidate-2": 32.0, "phase-1/soup": 33.0}
    return {name: Score({"bleu": v}, [v - 1, v, v + 1]) for name, v in known.items()}


def test_the_best_candidate_is_the_validation_sets():
    found = compare_scores(scores(), "bleu", report([2, 1]))
    assert [(c["model"], c["against"], c["difference"]) for c in found] == [
        ("phase-1/soup", "dense", 2.0),
        ("phase-1/soup", "phase-1/candidate-2", 1.0),
    ]
    assert found[0]["interval"] == [2.0, 2.0], "the same samples: what moves both moves no difference"


def test_nothing_is_said_of_what_is_the_same_or_not_known():
    assert [c["against"] for c in compare_scores(scores(), "bleu", report([2]))] == ["dense"]
    known = scores()
    del known["phase-1/candidate-2"]
    assert [c["against"] for c in compare_scores(known, "bleu", report([2, 1]))] == ["dense"]
    unknown = scores() | {"dense": Score({"bleu": 31.0}, None)}
    assert [c["against"] for c in compare_scores(unknown, "bleu", report([2, 1]))] == ["phase-1/candidate-2"]
    assert compare_scores(scores() | {"phase-1/soup": Score({"bleu": 1.0}, None)}, "bleu", report([2, 1])) == []


# ---- A run -------------------------------------------------------------------------------------------------------------


def test_a_run_writes_what_its_test_scores_are_worth(make_trainer):
    """Of a loss, by batches; any soup method."""
    settings = {"num_phases": 1, "keep_candidates": True, "soup_method": "uniform", "per_device_eval_batch_size": 1}
    trainer = make_trainer(settings)
    trainer.train()
    assert trainer.comparisons == []
    found = trainer.evaluate_run(reversal(12, seed=9), dense=tiny_t5())
    root = Path(trainer.args.output_dir)
    best = min(trainer.report["phases"][0]["candidates"], key=lambda c: c["score"])["name"]
    assert [c["against"] for c in trainer.comparisons] == ["dense", f"phase-1/{best}"]
    for comparison in trainer.comparisons:
        expected = found["phase-1/soup"] - found[comparison["against"]]
        assert comparison["difference"] == pytest.approx(expected)
        assert comparison["interval"][0] <= expected <= comparison["interval"][1]
    assert read_lineage(root)["comparisons"] == json.loads(json.dumps(trainer.comparisons))
    sentence = describe_comparison(trainer.comparisons[0], "loss")
    assert f"On the test set (paired bootstrap over its rows): {sentence}; " in (root / "README.md").read_text()
    written = (root / "sparse_soup.json").read_bytes()
    again = make_trainer(settings)
    again.train(resume_from_checkpoint=True)
    assert (root / "sparse_soup.json").read_bytes() == written, "a finished run keeps them"


def test_of_too_few_batches_nothing_is_said(make_trainer):
    trainer = make_trainer({"num_phases": 1, "per_device_eval_batch_size": 8})
    trainer.train()
    assert set(trainer.evaluate_run(reversal(12, seed=9), dense=tiny_t5())) == {"dense", "phase-1/soup"}
    assert trainer.comparisons == []
    assert "comparisons" not in read_lineage(trainer.args.output_dir)
    assert "paired bootstrap" not in (Path(trainer.args.output_dir) / "README.md").read_text()


def test_the_sentences_stand_under_the_table(make_trainer, capsys):
    trainer = make_trainer({"num_phases": 1, "per_device_eval_batch_size": 1})
    trainer.train()
    task = Task(model=tiny_t5(), train=reversal(24), validation=reversal(10, seed=1), test=reversal(12, seed=9))
    capsys.readouterr()
    show_outcome(task, trainer, tiny_t5())
    table, sentence, _, footnote = capsys.readouterr().out.strip().rsplit("\n", 3)
    assert "test loss" in table
    assert sentence == f"On the test set, {describe_comparison(trainer.comparisons[0], 'loss')}."
    assert sentence.startswith("On the test set, soup against dense: ")
    assert footnote == "chosen on 10 validation rows, tested on 12."
    show_outcome(dataclasses.replace(task, test=None), trainer, tiny_t5())
    assert "against" not in capsys.readouterr().out, "what is told is of the table above it"


def test_beams_reach_the_test_scores(make_trainer):
    """The sum of all tokens is another one where four beams found other sentences than one."""

    def tokens(prediction):
        return {"tokens": float(np.where(prediction.predictions > 0, prediction.predictions, 0).sum())}

    settings = {"num_phases": 1, "predict_with_generate": True, "metric_for_best_model": "tokens"}
    options = {"generation_max_length": 12, "generation_num_beams": 4}
    trainer = make_trainer(settings | options, compute_metrics=tokens)
    trainer.train()
    test = reversal(12, seed=9)
    batch = {name: value for name, value in collate(list(test)).items() if name != "labels"}
    model = trainer.model.eval()
    by_hand = {n: float(model.generate(**batch, max_length=12, num_beams=n).sum()) for n in (1, 4)}
    assert by_hand[1] != by_hand[4]
    assert trainer.evaluate_run(test)["phase-1/soup"] == by_hand[4]
