"""The user's options."""

import dataclasses

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from sms_hf import SparseSoupArguments, SparseSoupTrainingArguments

OPTIONS = [
    "pruning_method",
    "target_sparsity",
    "num_phases",
    "num_candidates",
    "vary",
    "min_candidates",
    "candidate_processes",
    "soup_method",
    "soup_min_gain",
    "pruning_scope",
    "pruning_criterion",
    "calibration_batches",
    "pruning_pattern",
    "target_modules",
    "exclude_modules",
    "max_sparsity_per_layer",
    "pruning_interval",
    "pruning_end",
    "phase_shares",
    "shared_fraction",
    "trunk_processes",
    "averaging_rounds",
    "outer_step",
    "candidate_data",
    "dense_train_epochs",
    "retrain_schedule",
    "min_learning_rate",
    "original_schedule",
    "original_num_epochs",
    "retrained",
    "tail_average",
    "distill_weight",
    "distill_temperature",
    "distill_features",
    "distill_cache",
    "bn_recalibration_fraction",
    "sparse_format",
    "keep_candidates",
]


def test_options_are_these_and_each_has_help_without_a_bare_percent():
    fields = dataclasses.fields(SparseSoupArguments)
    assert [field.name for field in fields] == OPTIONS
    for field in fields:
        assert len(field.metadata["help"]) > 20
        assert "%" not in field.metadata["help"]


def test_all_of_trainers_arguments_are_still_there():
    ours = {field.name for field in dataclasses.fields(SparseSoupTrainingArguments)}
    assert {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)} <= ours


def test_the_command_line_takes_a_mapping_as_json(tmp_path):
    parser = HfArgumentParser(SparseSoupTrainingArguments)
    line = [
        "--output_dir",
        str(tmp_path),
        "--vary",
        '{"seed": [4, 5]}',
        "--target_sparsity",
        "0.5",
        "--num_phases",
        "1",
    ]
    (args,) = parser.parse_args_into_dataclasses([*line, "--use_cpu", "--target_modules", r".*\.(q|v)"])
    assert args.vary == {"seed": [4, 5]}
    assert args.target_modules == r".*\.(q|v)"
    assert [candidate.overrides for candidate in args.make_plan()[0].candidates] == [{"seed": 4}, {"seed": 5}]
    assert "target_sparsity" in parser.format_help()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_sparsity": 90}, "target_sparsity must lie in [0, 1), got 90"),
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        (
            {"soup_method": "stone"},
            "'lottery-pools', 'model-stock', 'uniform'], got 'stone'",
        ),
        (
            {"pruning_scope": "local"},
            "pruning_scope must be one of ['erk', 'global', 'lamp', 'uniform', 'uniform+'], got 'local'",
        ),
        (
            {"pruning_criterion": "luck"},
            "pruning_criterion must be one of ['magnitude', 'random', 'taylor', 'wanda'], got 'luck'",
        ),
        (
            {"pruning_pattern": "2:4", "pruning_scope": "uniform"},
            "pruning_pattern='2:4' removes 0.5 of the weights, target_sp",
        ),
        ({"pruning_pattern": "2:4", "target_sparsity": 0.5}, "scope"),
        ({"pruning_pattern": "tiles"}, "pruning_pattern"),
        ({"pruning_method": "snip"}, "pruning_method must be one of"),
        (
            {"retrain_schedule": "warp"},
            "retrain_schedule must be one of ['allr', 'clr', 'ft', 'llr', 'lrw', 'slr'], got 'warp'",
        ),
        ({"retrain_schedule": "allr"}, "Set original_num_epochs to the epochs"),
        ({"retrain_schedule": "ft"}, "Set min_learning_rate to it, above 0"),
        ({"retrain_schedule": "lrw"}, "Set original_schedule to the folder or trainer_state.json"),
        ({"retrain_schedule": "slr", "original_schedule": "linear"}, "needs original_num_epochs"),
        ({"retrain_schedule": "slr", "original_schedule": "nowhere"}, "original_schedule must be the folder or"),
        ({"bn_recalibration_fraction": 1.5}, "bn_recalibration_fraction must lie in [0, 1], got 1.5"),
        ({"max_sparsity_per_layer": 1.5}, "max_sparsity_per_layer must lie in (0, 1], got 1.5"),
        ({"max_sparsity_per_layer": 0.0}, "max_sparsity_per_layer must lie in (0, 1], got 0.0"),
        ({"max_sparsity_per_layer": 0.7}, "must be at least target_sparsity=0.75, got 0.7"),
        ({"vary": "seed=1"}, "`vary` must be JSON"),
        ({"vary": "[1]"}, "`vary` must be a JSON object"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "Expected no `deepspeed`"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(make_args, changes, words):
    with pytest.raises(ValueError, match=r".") as error:
        make_args(**changes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({}, ("loss", False)),
        ({"metric_for_best_model": "bleu"}, ("bleu", True)),
        ({"metric_for_best_model": "eval_bleu"}, ("bleu", True)),
        ({"metric_for_best_model": "chrf"}, ("chrf", True)),
        ({"metric_for_best_model": "ter"}, ("ter", False)),
        ({"metric_for_best_model": "eval_ter"}, ("ter", False)),
        ({"metric_for_best_model": "ter", "greater_is_better": True}, ("ter", True)),
        ({"metric_for_best_model": "error", "greater_is_better": False}, ("error", False)),
    ],
)
def test_selection_metric_is_trainers_own(make_args, changes, metric):
    assert make_args(**changes).selection_metric == metric


def test_sharding_is_refused_where_it_would_silently_be_ddp(make_args):
    with pytest.raises(ValueError, match="fsdp needs GPUs, got CPUs"):
        make_args(fsdp=True)


def test_processes_of_a_candidate_must_divide_all(make_args, make_trainer):
    with pytest.raises(ValueError, match="candidate_processes must be at least 1, got 0"):
        make_args(candidate_processes=0)
    with pytest.raises(ValueError, match="Expected no candidate_processes with trunk_processes, got 2 and 4"):
        make_args(pruning_method="gmp-soup", candidate_processes=2, trunk_processes=4)
    with pytest.raises(ValueError, match="candidate_processes must divide the number of processes, got 2 of 1"):
        make_trainer({"candidate_processes": 2}).train()
