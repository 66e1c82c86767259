"""`sms-hf` itself: its help, what it completes, what it hands to the recipes as it stands, and its exit codes."""

import re
import subprocess
import sys

import pytest

from sms_hf import launching
from sms_hf.cli import main


@pytest.fixture
def handed_on(monkeypatch):
    """What the scripts of the recipes are started with, in place of them."""
    calls = []

    def run_script(script, arguments, num_processes):
        calls.append((script.name, list(arguments), num_processes))
        return 7

    monkeypatch.setattr(launching, "run_script", run_script)
    return calls


OPTIONS = [*("--demo", "my.yaml", "--learning_rate", "-1e-3", "--vary", '{"seed": [1, 2]}', "--lr=0.1", "-x"), "-abc"]


@pytest.mark.parametrize("place", range(len(OPTIONS) + 2))
def test_options_reach_the_recipe_untouched(place, handed_on):
    """Wherever the one option stands that is not the recipe's."""
    arguments = ["wmt16_t5", *OPTIONS]
    assert main(["train", *arguments[:place], "--num_processes", "2", *arguments[place:]]) == 7
    assert handed_on == [("wmt16_t5.py", OPTIONS, 2)]


def test_what_a_script_says_of_itself_it_is_asked_for(handed_on):
    assert main(["train", "causal_lm", "--help"]) == main(["compare", "--help"]) == main(["compare", "a.yaml"]) == 7
    assert main(["greedy", "causal_lm", "one", "two", "--output_dir", "out", "--seed", "-1"]) == 7
    greedy = ["--model_name_or_path", "one", "--output_dir", "out", "--seed", "-1", "--soup_of", "one", "two"]
    assert handed_on == [
        ("causal_lm.py", ["--help"], 1),
        ("compare.py", ["--help"], 1),
        ("compare.py", ["a.yaml"], 1),
        ("causal_lm.py", greedy, 1),
    ]


@pytest.mark.parametrize("arguments", [["train"], ["train", "--help"], ["greedy", "-h"], ["trim", "-h"], ["-h"]])
def test_help_is_plain_where_nobody_looks_on(arguments, capsys):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: sms-hf")
    assert said.isascii()
    assert "sms-hf train wmt16_t5 --demo --num_processes 2" in said or "Example: sms-hf" in said
    if arguments[0] == "train":
        assert re.search(r"\nTASK is one of causal_lm, [^.]*,\swmt16_t5;", said)
        assert max(map(len, said.splitlines())) < 80


def test_help_has_frames_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["pack", "--help"]) == 0
    said = capsys.readouterr().out
    assert "╭─" in said
    assert "Remove the dense form: smaller, but only sms_hf loads it." in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspct", "model"], "Did you mean 'inspect'?"),
        (["inspect", "model", "--jsn"], "--json"),
        (["inspect"], "MODEL"),
        (["trim", "model"], "--texts"),
        (["train", "wmt16_t5", "--num_processes", "two"], "--num_processes"),
        ([], "Usage: sms-hf"),
    ],
)
def test_a_wrong_call_ends_with_2(arguments, says, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(launching, "recipe_folder", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["compare", "a.yaml"])


def test_ctrl_c_ends_with_130(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "run_script", interrupt)
    assert main(["compare", "a.yaml"]) == 130


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sms-hf train w", ["wmt16_t5"]),
        ("sms-hf recipe ", launching.tasks()),
        ("sms-hf pa", ["pack"]),
        ("sms-hf pack m --en", ["--entropy"]),
    ],
)
def test_the_shell_completes(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("_SMS_HF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == expected


def test_help_into_a_pipe_that_is_closed_is_quiet():
    command = f"{sys.executable} -m sms_hf --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
