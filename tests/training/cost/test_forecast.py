"""What a run will cost: literal numbers of small plans, and real runs held against them."""

import os
import random
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, collate, reversal, tiny_t5
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments
from sms_hf.report.text import format_bytes, format_seconds
from sms_hf.training.cost.forecast import ModelFacts, forecast, makespan, num_steps, optimizer_bytes
from sms_hf.training.cost.lines import estimate_line, forecast_lines, start_lines
from sms_hf.training.cost.measure import TimeEstimate, forecast_model, forecast_run, measure_steps, model_facts
from sms_hf.training.masked.candidate import Retraining

FACTS = ModelFacts(num_parameters=1_000_000, weight_bytes=4_000_000, num_prunable=800_000, other_bytes=36_000)
"""A model folder of 4.2 MB: weights, 100,000 bytes of masks, the tokenizer, 64,000 bytes of small files."""


@pytest.fixture
def cost(make_args):
    """The forecast of three candidates in two phases, three epochs of 25 steps each."""

    def make(processes=1, facts=FACTS, num_examples=100, free_bytes=None, finished=(), **changes):
        args = make_args(**{"num_candidates": 3, "num_train_epochs": 3, **changes})
        return forecast(
            args.make_plan(), args, facts, processes, num_examples, free_bytes=free_bytes, finished=finished
        )

    return make


# ---- Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "processes", "last"),
    [
        ([7, 7, 7], 1, 21),
        ([7, 7, 7], 2, 14),
        ([7, 7, 7], 8, 7),
        ([5, 3, 4, 2], 2, 7),  # 5 + 2 beside 3 + 4.
        ([1, 1, 10], 2, 11),  # The long one comes last.
        ([10, 1, 1], 2, 10),
        ([], 2, 0),
    ],
)
def test_candidates_queue_for_the_next_free_process(lengths, processes, last):
    assert makespan(lengths, processes) == last


@pytest.mark.parametrize(
    ("changes", "overrides", "steps"),
    [
        ({}, {}, 25),
        ({"num_train_epochs": 1.5}, {}, 38),
        ({"per_device_train_batch_size": 3}, {}, 34),
        ({"per_device_train_batch_size": 3, "dataloader_drop_last": True}, {}, 33),
        ({"gradient_accumulation_steps": 8}, {}, 4),  # 25 batches.
        ({"max_steps": 7}, {}, 7),
        ({"max_steps": 7}, {"max_steps": -1, "num_train_epochs": 0.0}, 0),
        ({}, {"num_train_epochs": 2, "per_device_train_batch_size": 50}, 4),
    ],
)
def test_steps_of_a_candidate(make_args, changes, overrides, steps):
    assert num_steps(make_args(**changes), overrides, 100) == steps


def test_trainings_rounds_and_steps(cost):
    plan = cost(processes=2)
    assert (plan.num_phases, plan.candidates, plan.trainings) == (2, (3, 3), 6)
    assert (plan.steps, plan.total_steps, plan.serial_steps) == ((75,) * 6, 450, 300)
    assert cost(processes=8).serial_steps == 150
    uneven = cost(processes=2, num_candidates=None, vary={"num_train_epochs": [1, 2, 4]}, num_phases=1)
    assert (uneven.steps, uneven.serial_steps) == ((25, 50, 100), 125)
    # Half the examples a step: twice the steps, each half as long.
    sizes = cost(num_candidates=None, vary={"per_device_train_batch_size": [4, 2]}, num_phases=1)
    assert (sizes.steps, sizes.serial_steps) == ((75, 150), 150)
    resumed = cost(
        processes=2, finished={(1, "candidate-1"), (1, "candidate-2"), (1, "candidate-3"), (2, "candidate-1")}
    )
    assert (resumed.trainings, resumed.serial_steps) == (2, 75)


def test_methods_of_other_shapes(cost):
    bimp = cost(pruning_method="bimp-sms", dense_train_epochs=3)
    assert (bimp.candidates, bimp.steps) == ((1, 3, 3), (75, 38, 38, 38, 38, 38, 38))
    pruned = cost(pruning_method="pruned")
    assert (pruned.trainings, pruned.total_steps, pruned.memory_bytes) == (0, 0, 4_000_000)
    assert cost(pruning_method="imp-mx").steps == (225, 225)


def test_without_a_number_of_examples(cost):
    plan = cost(num_examples=None, save_strategy="steps", save_steps=10)
    assert (plan.total_steps, plan.serial_steps, plan.seconds) == (None, None, None)
    assert [note.split(":")[0] for note in plan.notes] == [
        "the number of training examples is not known (num_examples)",
        "checkpoints of a candidate cannot be counted without it",
    ]
    assert plan.disk_bytes == 5 * 4_200_000 + 2 * (4_200_000 + 8_000_000)
    assert cost(num_examples=None, max_steps=20).total_steps == 120


@pytest.mark.parametrize(("changes", "says"), [({"processes": 0}, "processes"), ({"num_examples": 0}, "num_examples")])
def test_counts_below_one_are_refused(cost, changes, says):
    with pytest.raises(ValueError, match=f"{says} must be at least 1, got 0"):
        cost(**changes)


# ---- Disk and memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "models", "checkpoints"),
    [
        ({}, 5, 0),  # Three candidates, one beside them, the soup of phase 1.
        ({"num_phases": 4}, 7, 0),
        ({"keep_candidates": True}, 11, 0),  # (3 + parent + soup) twice, and the final model.
        ({"pruning_method": "imp"}, 3, 0),
        ({"pruning_method": "imp-avg"}, 8, 0),  # Parent and candidates of phase 1 wait; then three more and the soup.
        ({"save_strategy": "epoch"}, 5, 3),
        ({"save_strategy": "epoch", "processes": 2}, 5, 6),
        ({"save_strategy": "epoch", "processes": 8}, 5, 9),
        ({"save_strategy": "epoch", "save_total_limit": 1}, 5, 2),  # One, and the next while it is written.
        ({"save_strategy": "epoch", "save_total_limit": 5}, 5, 3),
        ({"save_strategy": "epoch", "max_steps": 30}, 5, 2),
        ({"save_strategy": "steps", "save_steps": 50}, 5, 2),  # Steps 50 and 75.
        ({"save_strategy": "steps", "save_steps": 0.1}, 5, 10),  # Every 8 steps, and the last.
        ({"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"}, 5, 3),
    ],
)
def test_disk(cost, changes, models, checkpoints):
    assert cost(**changes).disk_bytes == models * 4_200_000 + checkpoints * (4_200_000 + 8_000_000)


def test_disk_of_what_lies_beside_the_weights(cost):
    best = cost(save_strategy="epoch", save_total_limit=1, eval_strategy="epoch", load_best_model_at_end=True)
    assert best.disk_bytes == 5 * 4_200_000 + 3 * 12_200_000  # The best and the last one are kept.
    alone = cost(save_strategy="epoch", save_only_model=True)
    assert alone.disk_bytes == 5 * 4_200_000 + 3 * 4_200_000
    dpf = cost(pruning_method="dpf", save_strategy="steps", save_steps=150)
    assert dpf.disk_bytes == 2 * 4_200_000 + 1 * (12_200_000 + 3_200_000)  # The dense weights behind the mask.
    compact = cost(pruning_method="imp", num_phases=1, sparse_format="both")
    assert compact.disk_bytes == 2 * 4_200_000 + 1_600_000 + 100_000  # Soup and final model; kept weights and masks.


@pytest.mark.parametrize(
    ("optim", "optim_args", "num_bytes"),
    [
        ("adamw_torch", None, 8_000_000),
        ("adamw_torch_fused", None, 8_000_000),
        ("adafactor", None, 0),
        ("sgd", None, 0),
        ("sgd", "momentum=0.9", 4_000_000),
        ("rmsprop", "momentum=0.9,eps=1e-8", 8_000_000),
        ("adagrad", None, 4_000_000),
        ("adamw_bnb_8bit", None, 2_000_000),
        ("paged_adamw_8bit", None, 2_000_000),
        ("adamw_torch_4bit", None, 1_000_000),
        ("lion_8bit", None, 1_000_000),
        ("lion_32bit", None, 4_000_000),
        ("ademamix", None, 12_000_000),
        ("schedule_free_sgd", None, 4_000_000),
        ("galore_adamw", None, 8_000_000),
    ],
)
def test_state_of_optimizers(make_args, optim, optim_args, num_bytes):
    assert optimizer_bytes(make_args(optim=optim, optim_args=optim_args), {}, FACTS) == num_bytes
    assert optimizer_bytes(make_args(), {"optim": optim, "optim_args": optim_args}, FACTS) == num_bytes
    half = ModelFacts(1_000_000, 2_000_000, 800_000, num_trainable=500_000)
    own = "bit" in optim  # A dtype of its own, whatever that of the weights.
    assert optimizer_bytes(make_args(optim=optim, optim_args=optim_args), {}, half) == num_bytes // (2 if own else 4)


def test_the_optimizer_on_disk_is_as_large_as_told(make_trainer):
    trainer = make_trainer({"save_strategy": "epoch", "pruning_method": "dpf", "num_phases": 1})
    facts, sizes = model_facts(trainer.model, trainer.args), {}
    trainer.retraining = Retraining()
    trainer.train()
    for path in Path(trainer.args.output_dir, "checkpoint-6").iterdir():
        sizes[path.name] = path.stat().st_size
    told = optimizer_bytes(trainer.args, {}, facts)
    assert told <= sizes["optimizer.pt"] < told + 40_000
    assert facts.weight_bytes <= sizes["model.safetensors"] < facts.weight_bytes + 10_000


def test_memory(cost):
    plan = cost()
    assert plan.memory_bytes == 4_000_000 + 4_000_000 + 8_000_000 + 3_200_000
    assert plan.copy_bytes == 4_000_000 + 800_000
    assert plan.on_cpu
    assert cost(pruning_method="dpf").memory_bytes == plan.memory_bytes + 3_200_000
    vary = {"optim": ["sgd", "adamw_torch"]}
    assert cost(num_candidates=None, vary=vary).memory_bytes == plan.memory_bytes  # The largest candidate.
    adapter = ModelFacts(1_000_000, 2_000_000, 800_000, num_trainable=100_000)  # 16 bit, a tenth of it trained.
    assert cost(facts=adapter).memory_bytes == 2_000_000 + 200_000 + 400_000 + 1_600_000


# ---- Lines ---------------------------------------------------------------------------------------------------------------


def test_first_lines(cost):
    line, *warnings = start_lines(cost(processes=2, free_bytes=10**9))
    assert line == (
        "3 candidates x 2 phases on 2 processes: 6 trainings of 75 steps; disk 21 MB of 1.0 GB free, memory 24 MB a process "
        "without activations"
    )
    assert warnings == []


@pytest.mark.parametrize(
    ("free", "says"),
    [
        (20_999_999, "WARNING: the disk would fill: 21 MB needed, 21 MB free."),
        (23_000_000, "WARNING: the disk will be nearly full: 21 MB needed, 23 MB free."),
    ],
)
def test_a_disk_that_is_too_small_is_told(cost, free, says):
    plan = cost(free_bytes=free)
    assert list(start_lines(plan))[1].startswith(says)
    assert list(forecast_lines(plan))[-1].startswith(says)
    assert "keep_candidates=False" in list(start_lines(plan))[1]


def test_idle_processes_and_uneven_steps_are_told(cost):
    plan = cost(processes=8, num_candidates=None, vary={"num_train_epochs": [1, 2]})
    first, second, *_ = forecast_lines(plan)
    assert first.endswith("4 trainings of 25 to 50 steps, 150 in all, 100 one after the other")
    assert second == "no phase has more than 2 candidate(s): 6 of 8 processes stay idle"


def test_groups_of_processes_share_steps_and_shards(cost, monkeypatch):
    # 100 examples in batches of 4 are 25 batches, of which each process of two takes 13.
    plan = cost(processes=4, candidate_processes=2)
    first, second, *_ = forecast_lines(plan)
    trainings, steps = "6 trainings of 39 steps", "234 in all, 156 one after the other"
    assert first == f"3 candidates x 2 phases on 4 processes, 2 for each candidate: {trainings}, {steps}"
    assert second.startswith("disk"), "two groups for three candidates: none is idle"
    assert cost(processes=2, candidate_processes=2, dataloader_drop_last=True).steps == (36,) * 6
    assert cost(processes=8, candidate_processes=2).serial_steps == 78
    assert list(forecast_lines(cost(processes=8, candidate_processes=2)))[1].endswith("2 of 8 processes stay idle")
    with pytest.raises(ValueError, match="processes must be a multiple of candidate_processes=2, got 3"):
        cost(processes=3, candidate_processes=2)
    assert plan.memory_bytes == cost().memory_bytes, "DDP: every process holds all"
    monkeypatch.setattr("sms_hf.training.cost.forecast.wants_sharding", lambda args: True)
    assert cost(processes=4, candidate_processes=2).memory_bytes == cost().memory_bytes / 2


@pytest.mark.parametrize(
    ("processes", "serial", "together"),
    [
        (3, 2 * (60 + 60), None),
        (6, 2 * (60 + 60), None),
        # Accumulated: a step of the trunk is three, and the candidates come in turns.
        (1, 2 * (3 * 60 + 3 * 60), 1),
        (2, 2 * (3 * 60 + 2 * 60), 1),
    ],
)
def test_a_trunk_of_three_processes_takes_three_batches_a_step(cost, processes, serial, together):
    # 30 batches an epoch. Of 12 epochs a phase the trunk has 6, of 10 steps each, and a candidate 2.
    sharing = {"num_train_epochs": 4, "shared_fraction": 0.5, "trunk_processes": 3}
    plan = cost(processes, num_examples=120, **sharing)
    assert plan.steps == (60, 60, 60, 60) * 2
    assert plan.serial_steps == serial
    told = [
        f"what candidates share is trained by {together} of {processes} processes together" in n for n in plan.notes
    ]
    assert told == [True] * (together is not None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (9_951, "10 kB"), (999_600, "1.0 MB")]
    + [(25e6, "25 MB"), (4.2e9, "4.2 GB"), (31.4e12, "31 TB")],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (40.4, "about 40 s"), (720, "about 12 min"), (89 * 60, "about 89 min")]
    + [
        (12_000, "about 3 h 20 min"),
        (14_300, "about 4 h"),
        (52 * 3600, "about 2 days 4 h"),
        (48 * 3600, "about 2 days"),
    ],
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text


# ---- Real steps and runs -------------------------------------------------------------------------------------------------


def states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def test_planning_changes_nothing_of_the_run_that_follows(make_trainer, tmp_path):
    weights = {}
    for planned in (False, True):
        trainer = make_trainer({"output_dir": str(tmp_path / str(planned))})
        if planned:
            trainer.evaluate()  # As in a user's script. It leaves marks on the model that no copy may carry.
            held = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            before, files = states(), sorted(tmp_path.rglob("*"))
            plan = forecast_run(trainer)
            assert states() == before
            assert sorted(tmp_path.rglob("*")) == files
            assert all(torch.equal(tensor, held[name]) for name, tensor in trainer.model.state_dict().items())
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
            assert trainer.masks is None
            assert trainer.optimizer is None
            assert plan.seconds is not None
            assert plan.seconds > 0
        output = trainer.train()
        weights[planned] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert plan.total_steps == output.global_step == 24
    assert all(torch.equal(weights[True][name], tensor) for name, tensor in weights[False].items())
    # What is done need not be done again.
    again = forecast_run(trainer, processes=2, measure=False)
    assert (again.trainings, again.serial_steps, again.seconds) == (0, 0, None)


def test_callbacks_and_generators_see_nothing_of_a_measurement(make_trainer):
    from transformers import TrainerCallback

    class Seen(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            Seen.steps += 1

    class Collator:
        calls = 0

        def __call__(self, rows):
            self.calls += 1
            return collate(rows)

    collator = Collator()
    measured = measure_steps(make_trainer(callbacks=[Seen()], data_collator=collator))
    assert measured.seconds_per_step > 0
    assert (Seen.steps, collator.calls) == (0, 0)


@pytest.mark.parametrize("changes", [{"retrain_schedule": "llr"}, {"pruning_method": "dpf"}, {"max_steps": 2}])
def test_measures_whatever_the_candidates_are_trained_by(make_trainer, changes):
    settings = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": changes == {"max_steps": 2},
    }
    trainer = make_trainer(settings | changes)
    assert measure_steps(trainer).seconds_per_step > 0


def measured_peak(trainer):
    """Train, and look all the time how large `output_dir` is."""
    folder, peak, stop = str(trainer.args.output_dir), [0], threading.Event()

    def watch():
        while not stop.wait(0.005):
            size = 0
            for root, _, names in os.walk(folder):
                for name in names:
                    try:
                        size += os.stat(os.path.join(root, name)).st_size
                    except FileNotFoundError:  # Gone or renamed meanwhile.
                        continue
            peak[0] = max(peak[0], size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        trainer.train()
    finally:
        stop.set()
        thread.join()
    return peak[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1},
        {"keep_candidates": True},
        {"pruning_method": "dpf", "save_strategy": "epoch"},
        {},
        {"pruning_method": "imp-avg"},
    ],
)
def test_no_run_needs_more_disk_than_told(make_trainer, changes):
    # Weights of 2.9 MB, so that they outweigh the small files.
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 1024, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    trainer = make_trainer(
        {"num_candidates": 3, **changes}, model=T5ForConditionalGeneration(T5Config(vocab_size=64, **sizes))
    )
    told = forecast_run(trainer, measure=False).disk_bytes
    assert 0.7 * told < measured_peak(trainer) <= told


def test_time_is_told_once_after_some_steps(make_trainer, capsys):
    plan = forecast_run(make_trainer(), measure=False)
    estimate = TimeEstimate(plan, num_steps=2)
    for _ in range(2):
        trainer = make_trainer()
        trainer.retraining = Retraining()
        trainer.add_callback(estimate)
        trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if " about " in line]
    assert len(lines) == 1
    assert " for the 4 trainings (" in lines[0]
    assert estimate_line(plan, 0.5) == "about 12 s for the 4 trainings (0.5 s a step), without scoring"
    # 2 candidates, and the second one tried in the soup, in each of 2 phases: 6 scores of 10 s.
    assert (plan.serial_steps, plan.serial_scores) == (24, 6)
    assert estimate_line(plan, 0.5, 10.0, 7.0) == (
        "about 79 s in all: about 12 s for the 4 trainings (0.5 s a step), about 60 s for at most 6 scores one after the other, "
        "7 s until here"
    )


@pytest.mark.parametrize(
    ("changes", "processes", "scores"),
    [
        ({"num_candidates": 3}, 1, 2 * (3 + 2)),
        ({"num_candidates": 3}, 2, 2 * (2 + 2)),
        ({"num_candidates": 3, "soup_method": "uniform"}, 3, 2 * (1 + 1)),
        ({"num_candidates": 1}, 1, 2),
        ({"num_candidates": 3, "pruning_method": "imp-avg"}, 1, 3 + 3 + 1),
    ],
)
def test_scores_one_after_the_other(make_trainer, changes, processes, scores):
    assert forecast_run(make_trainer(changes), processes, measure=False).serial_scores == scores


def test_the_dense_models_score_is_timed_and_told(make_trainer, capsys):
    make_trainer({"num_train_epochs": 3}).train()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " in all: " in line]
    told = r"about .* in all: about .* for the 4 trainings .*, about .* for at most 6 scores .*, \d+ s until here"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {told}", line)


# ---- Made-up rows --------------------------------------------------------------------------------------------------------

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    "model",
    [
        tiny_t5(),
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)),
        BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **TINY)),
        ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **TINY)),
        ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
    ],
    ids=lambda model: type(model).__name__,
)
def test_steps_are_measured_on_made_up_rows(model, tmp_path):
    targets = r".*\.convolution" if isinstance(model, ResNetForImageClassification) else None
    settings = {**QUICK, "per_device_train_batch_size": 2, "target_modules": targets}
    args = SparseSoupTrainingArguments(str(tmp_path / "run"), **settings)
    plan = forecast_model(model, args, SparseSoupTrainer, processes=3, num_examples=10, sequence_length=8)
    assert plan.notes == ()
    assert plan.seconds_per_step is not None
    assert plan.seconds == plan.seconds_per_step * 30  # Two rounds of three epochs of five steps.
    assert plan.peak_bytes is None or plan.peak_bytes > plan.memory_bytes
    assert not (tmp_path / "run").exists()


def test_no_time_where_no_rows_can_be_made_up(tmp_path):
    args = SparseSoupTrainingArguments(str(tmp_path / "run"), **QUICK)
    plan = forecast_model(T5EncoderModel(tiny_t5().config), args, SparseSoupTrainer, num_examples=10)
    assert plan.seconds is None
    assert plan.notes[0].startswith("no estimate of time: no rows can be made up for T5EncoderModel")
    assert plan.disk_bytes > 0


def test_rows_are_no_longer_than_the_model_takes(tmp_path):
    args = SparseSoupTrainingArguments(str(tmp_path / "run"), **QUICK)
    short = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    plan = forecast_model(short, args, SparseSoupTrainer, num_examples=10, sequence_length=9)
    assert plan.seconds is not None
    assert plan.notes == ("a step is measured on rows of 8 tokens, all that the model takes",)


def test_facts_of_a_model(make_trainer):
    trainer = make_trainer(train_dataset=reversal(24))
    facts = model_facts(trainer.model, trainer.args)
    assert (facts.num_prunable, facts.num_parameters) == (20_480, trainer.model.num_parameters())
    assert facts.weight_bytes == 4 * facts.num_parameters  # The tied embedding once.
