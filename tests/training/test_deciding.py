"""Which arguments must be equal on resume: none can be forgotten."""

from dataclasses import fields

import pytest
from transformers import Seq2SeqTrainingArguments

from sms_hf import SparseSoupArguments, SparseSoupTrainingArguments
from sms_hf.training.deciding import CHOOSES_BEST, INCIDENTAL, deciding_arguments

DECIDE = {
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "seed",
        "data_seed",
    ),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim", "optim_args", "optim_target_modules"),
    *("label_smoothing_factor", "neftune_noise_alpha", "average_tokens_across_devices"),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cache"),
    *("dataloader_drop_last", "train_sampling_strategy", "length_column_name", "remove_unused_columns", "label_names"),
    *("metric_for_best_model", "greater_is_better", "load_best_model_at_end"),
    *("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config", "sortish_sampler"),
}
"""Trainer's arguments that change what is computed."""


def test_every_argument_of_trainer_has_its_place():
    """One that a new release brings is compared, until somebody has looked at it: then this list or the other names it."""
    theirs = {field.name for field in fields(Seq2SeqTrainingArguments)}
    assert theirs - INCIDENTAL - CHOOSES_BEST <= DECIDE
    assert not DECIDE & (INCIDENTAL | CHOOSES_BEST)


def test_our_own_arguments_decide_but_for_three(make_args):
    ours = {f.name for f in fields(SparseSoupTrainingArguments)} - {f.name for f in fields(Seq2SeqTrainingArguments)}
    found = set(deciding_arguments(make_args()))
    assert ours - found == {"keep_candidates", "min_candidates", "sparse_format"}
    assert found & INCIDENTAL == set()


def test_what_chooses_the_best_checkpoint_decides_where_one_is_chosen(make_args):
    assert not CHOOSES_BEST & set(deciding_arguments(make_args()))
    chosen = make_args(load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps", eval_steps=5)
    found = deciding_arguments(chosen)
    assert set(found) >= CHOOSES_BEST
    assert (found["eval_steps"], found["eval_strategy"]) == (5, "steps")


def test_a_field_of_a_subclass_is_compared_unless_it_says_otherwise(tmp_path):
    class Theirs(SparseSoupTrainingArguments):
        margin: float = 0.5
        banner: str = "hello"
        incidental = SparseSoupArguments.incidental | {"banner"}

    found = deciding_arguments(Theirs(str(tmp_path), margin=0.25, use_cpu=True))
    assert found["margin"] == 0.25
    assert "banner" not in found


def test_other_ways_to_choose_the_best_are_refused_on_resume(make_trainer):
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3}
    make_trainer({"num_phases": 1, "eval_steps": 3, **best}).train()
    with pytest.raises(ValueError, match=r"arguments\.eval_steps: 3 -> 1"):
        make_trainer({"num_phases": 1, "eval_steps": 1, **best}).train(resume_from_checkpoint=True)


def test_what_does_not_matter_may_change_on_resume(make_trainer):
    make_trainer({"num_phases": 1}).train()
    make_trainer({"num_phases": 1, "logging_steps": 7, "dataloader_num_workers": 0, "sparse_format": "both"}).train(
        resume_from_checkpoint=True
    )
