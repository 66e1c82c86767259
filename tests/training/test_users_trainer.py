"""What people do with a Trainer before they train: set things on it, subclass it, give it callbacks of all kinds."""

import logging
import threading

import pytest
import torch
from conftest import collate, reversal, tiny_t5
from huggingface_hub import ModelCard
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from sms_hf import MaskedTrainerMixin, MaskError, Masks, SparseSoupMixin, SparseSoupTrainer


class Count(TrainerCallback):
    """Counts steps on the class, which copies share."""

    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        type(self).steps += 1


class Locked(TrainerCallback):
    def __init__(self):
        self.lock = threading.Lock()


@pytest.fixture(autouse=True)
def count_from_zero():
    Count.steps = 0


ONE_PHASE = {"num_phases": 1, "target_sparsity": 0.5}


def test_a_callback_that_is_added_later_sees_every_step(make_trainer):
    trainer = make_trainer(ONE_PHASE)
    trainer.add_callback(Count())
    trainer.train()
    assert Count.steps == 2 * 6, "two candidates of 24 rows in batches of 4"


def test_a_callback_that_is_removed_sees_none(make_trainer):
    trainer = make_trainer(ONE_PHASE, callbacks=[Count()])
    trainer.remove_callback(Count)
    trainer.train()
    assert Count.steps == 0


def test_early_stopping_that_is_added_later_stops_each_candidate_by_itself(make_trainer):
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings = (
        ONE_PHASE | saving | {"load_best_model_at_end": True, "metric_for_best_model": "loss", "num_train_epochs": 5}
    )
    trainer = make_trainer(settings)
    # No loss falls by a million: the patience of one evaluation is at its end after the second.
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e6))
    trainer.train()
    assert [c["steps"] for c in trainer.report["phases"][0]["candidates"]] == [2, 2]


def test_data_and_functions_that_are_set_later_are_used(make_trainer):
    trainer = make_trainer(ONE_PHASE | {"metric_for_best_model": "eight", "greater_is_better": True})
    trainer.train_dataset = reversal(8)
    trainer.eval_dataset = reversal(4, seed=3)
    trainer.compute_metrics = lambda prediction: {"eight": float(len(prediction.label_ids))}
    trainer.train()
    phase = trainer.report["phases"][0]
    assert [c["steps"] for c in phase["candidates"]] == [2, 2], "8 rows in batches of 4"
    assert phase["soup"]["score"] == 4.0, "rows of the evaluation data"


def test_a_collator_that_is_set_later_is_used_and_copied(make_trainer):
    class Collator:
        calls = 0

        def __call__(self, rows):
            Collator.calls += 1
            return collate(rows)

    trainer = make_trainer(ONE_PHASE)
    trainer.data_collator = Collator()
    trainer.train()
    assert Collator.calls > 12


def test_own_attributes_and_methods_reach_the_candidates(make_trainer):
    """A weight of a loss, and a method put onto the instance, as notebooks do."""
    seen = []

    class Weighted(SparseSoupTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.weight = 1.0

        def compute_loss(self, *args, **kwargs):
            seen.append((id(self), self.weight))
            return super().compute_loss(*args, **kwargs)

    template = make_trainer(ONE_PHASE)
    trainer = Weighted(
        model=tiny_t5(),
        args=template.args,
        train_dataset=reversal(8),
        eval_dataset=reversal(4, seed=1),
        data_collator=collate,
    )
    trainer.weight = 0.5
    trainer.train()
    assert {weight for _, weight in seen} == {0.5}
    assert id(trainer) not in {who for who, _ in seen}


@pytest.mark.parametrize("add_later", [False, True])
def test_a_callback_that_cannot_be_copied_is_named_before_anything_is_trained(make_trainer, add_later):
    words = r"Expected a callback Locked that can be copied.*cannot pickle.*Open files, locks and connections in on_train_begin"
    if add_later:
        trainer = make_trainer(ONE_PHASE)
        trainer.add_callback(Locked())
        with pytest.raises(ValueError, match=words):
            trainer.train()
    else:
        with pytest.raises(ValueError, match=words):
            make_trainer(ONE_PHASE, callbacks=[Locked()])


def test_a_callback_may_share_itself_with_its_copies(make_trainer):
    """How a user's own object sees all candidates of its process."""

    class Shared(Locked):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            with self.lock:
                self.steps += 1

        def __deepcopy__(self, memo):
            return self

    mine = Shared()
    make_trainer(ONE_PHASE, callbacks=[mine]).train()
    assert mine.steps == 12


@pytest.mark.parametrize("named", [True, False])
def test_arguments_of_another_class_are_refused_in_one_sentence(tmp_path, named):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="args must be SparseSoupTrainingArguments, got TrainingArguments"):
        SparseSoupTrainer(model=tiny_t5(), args=args) if named else SparseSoupTrainer(tiny_t5(), args)
    with pytest.raises(ValueError, match="args must be SparseSoupTrainingArguments, got none"):
        SparseSoupTrainer(tiny_t5())


@pytest.mark.parametrize("mixin", [MaskedTrainerMixin, SparseSoupMixin])
def test_bases_in_the_wrong_order_are_refused_when_the_class_is_made(mixin):
    with pytest.raises(TypeError, match=rf"got class Wrong\(Trainer, {mixin.__name__}\).*Put the mixin first"):
        type(mixin)("Wrong", (Trainer, mixin), {})
    assert issubclass(type(mixin)("Right", (mixin, Trainer), {}), Trainer)


def test_masks_of_another_model_are_told_when_they_are_set(tmp_path):
    class Masked(MaskedTrainerMixin, Trainer):
        pass

    trainer = Masked(tiny_t5(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    with pytest.raises(
        MaskError, match=r"Masks for \['classifier.weight'\] have no parameter in T5ForConditionalGeneration"
    ):
        trainer.masks = Masks({"classifier.weight": torch.ones(2, 2, dtype=torch.bool)})


def test_the_local_card_knows_what_the_pushed_one_will(make_trainer, tmp_path, monkeypatch):
    """Language and task, and a line that loads the folder as it was named."""
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(ONE_PHASE | {"output_dir": "runs/soup"})
    trainer.card = {"language": ["en", "de"], "tasks": "translation", "license": "mit"}
    trainer.train()
    card = ModelCard.load("runs/soup/README.md")
    assert (card.data.language, card.data.pipeline_tag, card.data.license) == (["en", "de"], "translation", "mit")
    (line,) = [line for line in card.text.splitlines() if "from_pretrained" in line]
    names = {}
    exec(f"from transformers import AutoModelForSeq2SeqLM\n{line}", names)
    assert names["model"].num_parameters() == trainer.model.num_parameters()


def test_a_resumed_candidate_does_not_speak_of_missing_keys(make_trainer, caplog, tmp_path):
    """Tied embeddings stand in a checkpoint once."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    saving = ONE_PHASE | {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(saving, callbacks=[Stop()]).train()
    transformers_logger = logging.getLogger("transformers")
    monitored = transformers_logger.propagate
    transformers_logger.propagate = True
    try:
        make_trainer(saving).train(resume_from_checkpoint=True)
    finally:
        transformers_logger.propagate = monitored
    assert "missing keys" not in caplog.text


def test_the_masked_mixin_writes_no_pickle(tmp_path):
    class Masked(MaskedTrainerMixin, Trainer):
        """Explains where `training_args.bin` is."""

    trainer = Masked(tiny_t5(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "training_args.bin").exists()
    assert "training_args.bin" in (MaskedTrainerMixin.__doc__ or "")
    assert torch.is_tensor(trainer.model.lm_head.weight)


def test_candidates_that_are_equal_are_told_apart_from_a_soup(make_trainer, capsys):
    """No dropout, and one order of the data: the seeds act on nothing."""
    trainer = make_trainer(ONE_PHASE | {"data_seed": 7}, model=tiny_t5(dropout=0.0))
    trainer.train()
    (warning,) = trainer.report["phases"][0]["diagnostics"]["warnings"]
    assert warning.startswith("candidate-1 and candidate-2 are equal bit for bit")
    assert "seed made no difference" in warning
    assert "Vary learning_rate" in warning
    assert f"phase 1: {warning}" in capsys.readouterr().out


def test_candidates_of_other_learning_rates_are_no_twins(make_trainer, capsys):
    varied = ONE_PHASE | {"data_seed": 7, "vary": {"learning_rate": [1e-3, 2e-3]}}
    make_trainer(varied, model=tiny_t5(dropout=0.0)).train()
    assert "bit for bit" not in capsys.readouterr().out


def test_the_history_afterwards_tells_of_candidates_and_soups(make_trainer, tmp_path):
    trainer = make_trainer({"logging_steps": 3})
    output = trainer.train()
    state = trainer.state
    assert (state.global_step, state.max_steps, output.global_step) == (24, 24, 24)
    assert state.epoch == 4.0
    assert state.total_flos > 0
    losses = [(e["phase"], e["candidate"], e["step"]) for e in state.log_history if "loss" in e]
    names = [(1, "candidate-1"), (1, "candidate-2"), (2, "candidate-1"), (2, "candidate-2")]
    assert losses == [(*name, 6 * i + step) for i, name in enumerate(names) for step in (3, 6)]
    soups = [(e["phase"], e["step"], e["eval_loss"]) for e in state.log_history if "soup" in e]
    assert soups == [(p["number"], 12 * p["number"], p["soup"]["score"]) for p in trainer.report["phases"]]
    scores = [e["eval_loss"] for e in state.log_history if "candidate" in e and "eval_loss" in e]
    assert scores == [c["score"] for p in trainer.report["phases"] for c in p["candidates"]]
    assert not any("runtime" in key for entry in state.log_history for key in entry)
    trainer.save_state()
    assert TrainerState.load_from_json(str(tmp_path / "run/trainer_state.json")).log_history == state.log_history
