"""`sms-hf plan`: what it prints, on a folder."""

import json
from types import SimpleNamespace

import pytest
from conftest import tiny_t5

from sms_hf import SparseSoupTrainingArguments
from sms_hf.cli import main
from sms_hf.training.cost.advice import advice_line


@pytest.fixture
def folder(tmp_path):
    tiny_t5().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_plan(folder, tmp_path, capsys):
    options = [
        "--use_cpu",
        "True",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    options += ["--vary", '{"seed": [1, 2, 3, 4]}', "--num_train_epochs", "2", "--sequence_length", "8"]
    assert main(["plan", "--num_examples", "80", folder, "--processes", "3", *options]) == 0
    captured = capsys.readouterr()
    first, time, disk, memory, advice = captured.out.splitlines()
    assert first == (
        "4 candidates x 2 phases on 3 processes: 8 trainings of 20 steps, 160 in all, 80 one after the other"
    )
    assert time.startswith("time: about ")
    assert " s of training (0.0" in time
    assert disk.startswith("disk: 957 kB at the fullest, ")  # Six folders: weights 92 kB, masks 3, config 2, others 64.
    # Five times 92,160 bytes (weights, gradients, AdamW, the copy) and 20,480 prunable weights with masks of 4 + 1 bytes.
    assert memory.startswith("memory: 563 kB a process without activations; ")
    assert advice == (
        "advice: up to 3 epochs a phase, one training of all these epochs was ahead of soups (docs/results.md): "
        "pruning_method='gmp-mx', on 4 processes in the same time with candidate_processes=4; "
        "the nearest soup: 'gmp-soup' with trunk_processes=4"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    "options",
    [
        ["--num_train_epochs", "15"],
        ["--pruning_method", "gmp-mx"],
        ["--num_candidates", "1"],
        ["--max_steps", "9"],
        ["--pruning_method", "gmp-soup", "--target_sparsity", "0.95", "--trunk_processes", "3"],
    ],
)
def test_there_is_no_advice_where_nothing_was_measured(folder, tmp_path, capsys, options):
    quiet = ["--use_cpu", "True", "--report_to", "none", "--output_dir", str(tmp_path), "--sequence_length", "8"]
    assert main(["plan", "--num_examples", "80", folder, *quiet, *options]) == 0
    assert "advice" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("sms 0.8 1", "'sms' was behind it by 1.9 points of accuracy on SST-2"),
        ("sms 0.9 1", "'sms' was behind it by 1 to 4 points of accuracy on digits, 1.1 BLEU on Multi30k"),
        ("sms 0.95 3", "'sms' was behind it by 1 to 7 points of accuracy on digits"),
        ("gmp-soup 0.98 1", "'gmp-soup' was behind it by 19 to 29 points of accuracy on digits"),
        ("imp-avg 0.9 1", "candidate_processes=3; the nearest soup: 'gmp-soup' with trunk_processes=3"),
        ("sms 0.9 3", "candidate_processes=3; the nearest soup: 'gmp-soup' with trunk_processes=3"),
        ("gmp-soup 0.95 1 3", "'gmp-soup' was behind it by 1 to 3 points of accuracy on digits)"),
    ],
)
def test_advice_says_what_the_chosen_row_was_behind(folder, tmp_path, capsys, row, says):
    quiet = ["--use_cpu", "True", "--report_to", "none", "--output_dir", str(tmp_path), "--sequence_length", "8"]
    names = ("--pruning_method", "--target_sparsity", "--num_train_epochs", "--trunk_processes")
    options = [part for pair in zip(names, row.split(), strict=False) for part in pair]
    assert main(["plan", "--num_examples", "80", folder, *quiet, *options]) == 0
    assert says in capsys.readouterr().out.splitlines()[-1]


def test_plan_for_programs(folder, tmp_path, capsys):
    quiet = ["--use_cpu", "True", "--report_to", "none", "--output_dir", str(tmp_path), "--sequence_length", "8"]
    assert main(["plan", "--num_examples", "80", folder, *quiet, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["candidates"], facts["steps"]) == ([3, 3], [30] * 6)
    assert facts["seconds_per_step"] > 0


def test_plan_without_a_number_of_examples(folder, tmp_path, capsys):
    assert main(["plan", folder, "--use_cpu", "True", "--output_dir", str(tmp_path), "--report_to", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 candidates x 2 phases on 1 process: 6 trainings"
    assert lines[3:5] == [
        "the number of training examples is not known (num_examples): no number of steps, no estimate of time",
        "checkpoints of a candidate cannot be counted without it: two are taken",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: model"),
        (["./nowhere"], "found no folder ./nowhere"),
        (["{folder}", "--target_sparsity", "2"], "target_sparsity must lie in [0, 1), got 2.0"),
        (["{folder}", "--target_sparsity", "much"], "argument --target_sparsity"),
        (["{folder}", "--sparsity", "0.5"], "got also --sparsity 0.5. Did you mean '--target_sparsity'? See"),
        (["{folder}", "--xyz", "2"], "got also --xyz 2. See sms-hf plan --help."),
        (["{folder}", "--processes", "0", "--use_cpu", "True"], "processes must be at least 1, got 0"),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, says):
    assert main(["plan", *(argument.format(folder=folder) for argument in arguments)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("sms-hf: ")
    assert says in error[-1]
    assert not any("Traceback" in line for line in error)


def test_no_warning_of_what_a_machine_without_gpu_does_not_have(folder, capsys):
    """Of those who do not turn pin_memory off themselves; a warning would be an error here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["plan", folder, "--use_cpu", "True", "--num_examples", "64", "--max_steps", "2"]) == 0
    assert not capsys.readouterr().err


def test_there_is_no_advice_for_a_run_that_is_done(tmp_path):
    args = SparseSoupTrainingArguments(str(tmp_path), target_sparsity=0.8, num_candidates=3, use_cpu=True)
    todo, done = (SimpleNamespace(candidates=(3,), trainings=trainings) for trainings in (3, 0))
    assert advice_line(args, todo).startswith("advice: ")
    assert advice_line(args, done) is None


def test_help_names_the_options_of_training(capsys):
    assert main(["plan", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--num_candidates" in said
    assert "--sequence_length" in said
