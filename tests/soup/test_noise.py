"""Noise of the evaluation data: the paired bootstrap, and a greedy soup that looks at it."""

import math

import numpy as np
import pytest
import sacrebleu
import torch
from conftest import reversal
from transformers import EvalPrediction

from sms_hf.metrics import bleu_metrics, classification_metrics, segmentation_metrics
from sms_hf.soup import Pool
from sms_hf.soup.ingredients import greedy_ingredients
from sms_hf.soup.noise import REPEATS, gain_noise, resample_predictions, resample_sums
from sms_hf.training.run import merging
from sms_hf.training.scoring import KeptPredictions, resampled_scores


def accuracy(sums):
    return sums[0] / sums[1]


def test_the_standard_error_of_a_mean_is_the_textbooks():
    """Of a share p of n rows: sqrt(p (1 - p) / n) = sqrt(0.8 * 0.2 / 400) = 0.02."""
    rows = np.array([[1.0, 1.0]] * 320 + [[0.0, 1.0]] * 80)
    scores = resample_sums(rows, accuracy)
    assert len(scores) == REPEATS
    assert np.mean(scores) == pytest.approx(0.8, abs=2e-3)
    assert np.std(scores) == pytest.approx(0.02, rel=0.1)


def test_differences_are_paired():
    """Two models that differ in 4 of 100 rows, all for the better: the gain is sure, although each score is noisy."""
    before = np.array([[1.0, 1.0]] * 50 + [[0.0, 1.0]] * 50)
    after = before.copy()
    after[50:54, 0] = 1
    samples = [resample_sums(rows, accuracy) for rows in (after, before)]
    error, share = gain_noise(*samples)
    assert error == pytest.approx(math.sqrt(0.04 * 0.96 / 100), rel=0.15)
    assert share(0.0) == 1.0
    assert 0.4 < share(0.04) < 0.7
    assert gain_noise(*samples, sign=-1)[1](1e-9) == 0.0


TEXTS = [
    "a cat sat on the mat",
    "the dog ran home",
    "we saw two birds there",
    "it is cold and dark",
    "who knows that man",
] * 8
REFERENCES = [
    "a cat sat on the mat",
    "the dog ran away home",
    "we saw birds there",
    "it was cold and dark",
    "who knows",
] * 8


class Words:
    """A tokenizer for whole words."""

    pad_token_id = 0

    def __init__(self):
        self.words = sorted({word for text in (*TEXTS, *REFERENCES) for word in text.split()})

    def encode(self, texts):
        ids = [[1 + self.words.index(word) for word in text.split()] for text in texts]
        return np.array([row + [0] * (8 - len(row)) for row in ids])

    def batch_decode(self, tokens, skip_special_tokens):
        return [" ".join(self.words[token - 1] for token in row if token) for row in tokens.tolist()]


@pytest.mark.parametrize("metric", [sacrebleu.BLEU(), sacrebleu.CHRF(), sacrebleu.TER()], ids=["bleu", "chrf", "ter"])
def test_translations_are_resampled_as_sacrebleu_does(metric, request):
    name, words = request.node.callspec.id, Words()
    compute = bleu_metrics(words, ter=True)
    prediction = EvalPrediction(words.encode(TEXTS), words.encode(REFERENCES))
    rows, score = compute.statistics.rows(prediction), compute.statistics.scores[name]
    assert score(rows.sum(0)) == pytest.approx(compute(prediction)[name], abs=1e-9)
    drawn = np.random.default_rng(3).integers(len(TEXTS), size=len(TEXTS))
    expected = metric.corpus_score([TEXTS[i] for i in drawn], [[REFERENCES[i] for i in drawn]]).score
    assert score(rows[drawn].sum(0)) == pytest.approx(expected, abs=1e-9)


def test_statistics_of_classes_and_of_pixels_give_the_metrics():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=draw), torch.randint(4, (50,), generator=draw)
    pixels = torch.randn(6, 3, 8, 8, generator=draw), torch.randint(3, (6, 8, 8), generator=draw)
    cases = [(classification_metrics(), (logits, labels)), (segmentation_metrics(3), pixels)]
    for compute, (outputs, truth) in cases:
        prediction = EvalPrediction(outputs.numpy(), truth.numpy())
        sums = compute.statistics.rows(prediction).sum(0)
        metrics = compute(prediction)
        for name, score in compute.statistics.scores.items():
            assert score(sums) == pytest.approx(metrics[name], abs=1e-12), name


def test_a_metric_of_the_users_own_is_computed_anew_for_every_sample():
    outputs = np.arange(60.0)

    def compute(prediction):
        assert prediction.predictions[1].shape == (60, 2)
        return {"mine": float(prediction.predictions[0].mean() - prediction.label_ids.mean())}

    prediction = EvalPrediction((outputs, np.zeros((60, 2))), outputs)
    assert set(resample_predictions(compute, prediction, "mine")) == {0.0}, "rows and labels are drawn together"
    kept = KeptPredictions(compute)
    kept(prediction)
    assert resampled_scores("mine", kept, [], any_metric=False) is None
    assert len(resampled_scores("mine", kept, [], any_metric=True)) == 200


def test_a_loss_is_sampled_in_batches_if_there_are_enough():
    parts = [(2.0 * targets, targets) for targets in (1.0, 2.0, 3.0, 4.0) * 2]
    assert set(resampled_scores("loss", KeptPredictions(None), parts, False)) == {2.0}
    assert resampled_scores("loss", KeptPredictions(None), parts[:7], False) is None


# Three candidates on 100 rows: "b" adds 8 right rows to "a" and takes none; "c" then adds 5 and takes 4.
RIGHT = {
    ("a",): set(range(60)),
    ("a", "b"): set(range(68)),
    ("a", "b", "c"): set(range(4, 73)),
    ("a", "c"): set(range(61)),
}


def pool(min_gain):
    def rows(weights):
        right = RIGHT[tuple(weights)]
        return np.array([[float(row in right), 1.0] for row in range(100)])

    def evaluate(weights):
        return rows(weights).mean(0)[0]

    scores = {"a": 0.6, "b": 0.5, "c": 0.4}
    return Pool(scores, evaluate, resampled=lambda w: resample_sums(rows(w), accuracy), min_gain=min_gain)


def test_noise_adds_nobody():
    chosen, trials = greedy_ingredients(pool(0.0))
    assert list(chosen) == ["a", "b", "c"], "0.69 is not worse than 0.68"
    assert [trial.score for trial in trials] == pytest.approx([0.6, 0.68, 0.69])
    # Eight rows gained: sqrt(0.08 * 0.92 / 100); five gained and four lost: sqrt((0.09 - 0.01^2) / 100).
    assert trials[1].standard_error == pytest.approx(0.0271, rel=0.1)
    assert trials[2].standard_error == pytest.approx(0.03, rel=0.1)
    assert (trials[0].sure, trials[1].sure) == (None, 1.0)
    assert 0.6 < trials[2].sure < 0.75
    chosen, trials = greedy_ingredients(pool(1.0))
    assert list(chosen) == ["a", "b"]
    assert [trial.accepted for trial in trials] == [True, True, False]
    assert trials[2].sure > 0.7, "share of samples in which it is rejected as well"


def test_without_a_least_gain_nothing_changes():
    quiet = pool(0.0)
    chosen, trials = greedy_ingredients(Pool(quiet.scores, quiet.evaluate))
    assert list(chosen) == list(greedy_ingredients(quiet)[0])
    assert [trial.standard_error for trial in trials] == [None, None, None]


def test_a_run_says_how_sure_it_is(make_trainer, capsys):
    settings = {"num_candidates": 3, "num_phases": 1, "per_device_eval_batch_size": 1}
    trainer = make_trainer(settings)
    trainer.train()
    (phase,) = trainer.report["phases"]
    trials = phase["soup"]["trials"]
    assert trials[0]["standard_error"] is None
    assert all(trial["standard_error"] > 0 and 0 <= trial["sure"] <= 1 for trial in trials[1:])
    assert not any("resampled" in candidate for candidate in phase["candidates"])
    accepted = sum(trial["accepted"] for trial in trials[1:])
    assert ("of resampled evaluation sets" in capsys.readouterr().out) == bool(accepted)
    strict = make_trainer({**settings, "soup_min_gain": 1e6, "output_dir": f"{trainer.args.output_dir}-strict"})
    strict.train()
    assert len(strict.report["phases"][0]["soup"]["ingredients"]) == 1
    assert [t["score"] for t in strict.report["phases"][0]["soup"]["trials"]][:2] == [t["score"] for t in trials][:2]


@pytest.mark.parametrize(("gain", "method"), [(-1.0, "greedy"), (math.nan, "greedy"), (1.0, "uniform")])
def test_what_makes_no_sense(make_args, gain, method):
    with pytest.raises(ValueError, match="soup_min_gain must be at least 0, and goes with soup_method='greedy'"):
        make_args(soup_min_gain=gain, soup_method=method)


OWN = {
    "num_candidates": 3,
    "num_phases": 1,
    "metric_for_best_model": "smallness",
    "greater_is_better": True,
}


def smallness(prediction):
    """A metric of the user's own, in which every row has a part."""
    return {"smallness": -float((prediction.predictions[0] ** 2).mean())}


def soup_of(trainer):
    trainer.train()
    return trainer.report["phases"][0]["soup"]


def test_the_least_gain_and_the_samples_reach_the_choice(make_trainer, monkeypatch):
    """On so small a task a soup gains nothing anyway, so that its ingredients would not tell."""
    pools = []

    def spy(pool):
        pools.append(pool)
        return greedy_ingredients(pool)

    monkeypatch.setitem(merging.SOUP_METHODS, "greedy", spy)
    soup = soup_of(make_trainer({**OWN, "soup_min_gain": 2.5}, compute_metrics=smallness))
    assert [pool.min_gain for pool in pools] == [2.5]
    assert [len(pools[0].resampled({name: 1})) for name in pools[0].scores] == [200] * 3
    assert all(trial["standard_error"] > 0 for trial in soup["trials"][1:])


def undefined(prediction):
    if len(np.unique(prediction.label_ids[:, 0])) < 8:
        raise ValueError("Only one class present in y_true.")
    return smallness(prediction)


def no_number(prediction):
    return {"smallness": math.nan} if len(np.unique(prediction.label_ids[:, 0])) < 8 else smallness(prediction)


@pytest.mark.parametrize(
    ("settings", "compute"),
    [
        ({"metric_for_best_model": "loss", "greater_is_better": False, "per_device_eval_batch_size": 8}, None),
        ({}, undefined),
        ({}, no_number),
    ],
    ids=["few batches", "raises on a sample", "NaN on a sample"],
)
def test_noise_that_cannot_be_told_is_refused_before_anything_is_trained(make_trainer, settings, compute):
    trainer = make_trainer({**OWN, "soup_min_gain": 1.0, **settings}, compute_metrics=compute)
    with pytest.raises(ValueError, match=r"soup_min_gain needs '(smallness|loss)' on samples of the evaluation set"):
        trainer.train()


@pytest.mark.parametrize("kind", ["batches", "several sets"])
def test_evaluations_that_keep_no_rows_are_refused(make_trainer, kind):
    def batch(prediction, compute_result=False):
        return {"smallness": -float((prediction.predictions[0] ** 2).mean())}

    several = {"a": reversal(10, seed=1), "b": reversal(10, seed=2)}
    trainer = (
        make_trainer({**OWN, "soup_min_gain": 1.0, "batch_eval_metrics": True}, compute_metrics=batch)
        if kind == "batches"
        else make_trainer(
            {**OWN, "soup_min_gain": 1.0, "metric_for_best_model": "a_smallness"},
            compute_metrics=smallness,
            eval_dataset=several,
        )
    )
    with pytest.raises(ValueError, match="soup_min_gain needs"):
        trainer.train()


def test_a_metric_may_look_at_inputs_and_may_say_eval(make_trainer):
    def compute(prediction):
        assert len(prediction.inputs) == len(prediction.label_ids)
        return {"eval_smallness": smallness(prediction)["smallness"]}

    settings = {**OWN, "soup_min_gain": 0.5, "include_for_metrics": ["inputs"]}
    trials = soup_of(make_trainer(settings, compute_metrics=compute))["trials"]
    assert all(trial["standard_error"] > 0 for trial in trials[1:])


def test_a_choice_that_was_cut_between_its_trials_ends_the_same(make_trainer, tmp_path, monkeypatch):
    settings = {**OWN, "num_candidates": 4, "soup_min_gain": 0.5}
    whole = soup_of(make_trainer({**settings, "output_dir": str(tmp_path / "whole")}, compute_metrics=smallness))
    write = merging.write_record

    def killed(path, *args):
        write(path, *args)
        if path.name == "trials.json":
            raise KeyboardInterrupt

    cut = make_trainer({**settings, "output_dir": str(tmp_path / "cut")}, compute_metrics=smallness)
    with monkeypatch.context() as patched:
        patched.setattr(merging, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            cut.train()
    again = make_trainer({**settings, "output_dir": str(tmp_path / "cut")}, compute_metrics=smallness)
    again.train(resume_from_checkpoint=True)
    assert again.report["phases"][0]["soup"] == whole


def test_an_unknown_noise_is_no_gain():
    quiet = pool(0.0)
    chosen, _ = greedy_ingredients(Pool(quiet.scores, quiet.evaluate, min_gain=1.0))
    assert list(chosen) == ["a"]
