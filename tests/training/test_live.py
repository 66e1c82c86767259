"""A run to watch: the view on a real terminal, lines elsewhere, and the log files of candidates."""

import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from sms_hf.training.live.screen import Screen
from sms_hf.training.plan.candidates import Candidate, Phase
from sms_hf.training.processes.mailbox import Mailbox
from sms_hf.training.processes.say import Listener, listening, say, tell
from sms_hf.training.processes.store import Processes

pyte = pytest.importorskip("pyte", reason="a terminal to look at needs pyte")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")

CLOCK = re.compile(r"\d\d:\d\d:\d\d ")


def drawn(screen, width=100, height=30):
    console = Console(width=width, height=height, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    with console.capture() as capture:
        console.print(screen.render(width, height))
    console.file.close()
    first, *lines = (line.rstrip() for line in capture.get().splitlines())
    assert first == "", "a distance to the lines above"
    return lines


def phase(number, num_candidates):
    candidates = tuple(Candidate(f"candidate-{i + 1}", {"seed": i}) for i in range(num_candidates))
    return Phase(number=number, sparsity=0.4 * number, candidates=candidates)


def training(name, step=0, steps=100, **facts):
    return {"phase": 1, "name": name, "step": step, "steps": steps, "loss": None, "seconds_per_step": 0.5, **facts}


def test_a_phase_on_a_wide_terminal(tmp_path):
    screen = Screen("soup", "bleu", [phase(1, 4), phase(2, 4)], tmp_path)
    screen.hear("dense", {"score": 35.56})
    screen.hear("training", training("candidate-1", 50, loss=0.25))
    screen.hear("training", training("candidate-2", 100, score=34.125, failure=None, seconds=51.0))
    screen.hear("training", training("candidate-3", 7, failure="its weights are not finite"))
    title, dense, *rows, foot = drawn(screen)
    assert re.fullmatch(r"soup  phase 1 of 2  0:00:0\d", title)
    assert dense == "dense model: bleu 35.56"
    assert re.sub(r"[━╸╺ ]+", " ", rows[0]) == "candidate-1 50/100 0.5 s/step 0:25 left loss 0.25"
    assert re.sub(r"[━╸╺ ]+", " ", rows[1]) == "candidate-2 100/100 51 s bleu 34.12"
    assert re.sub(r"[━╸╺ ]+", " ", rows[2]) == "candidate-3 7/100 failed: its weights are not finite"
    assert rows[3].split() == ["candidate-4", "waiting"]
    assert foot.endswith("of disk free")


def test_the_end_of_a_phase(tmp_path):
    screen = Screen("soup", "bleu", [phase(1, 3), phase(2, 3)], tmp_path)
    screen.hear("training", training("candidate-1", 50))
    screen.hear("trial", {"ingredients": ["candidate-2", "candidate-1"], "score": 34.5})
    assert "soup of candidates 2+1: bleu 34.5" in drawn(screen)
    screen.hear("phase", {"phase": 1, "sparsity": 0.4, "mean": 33.0, "best": 34.0, "soup": 34.5, "ingredients": 2})
    assert "phase 1: 40.0% removed, mean 33, best 34, soup of 2 34.5" in drawn(screen)
    assert not any("candidate-1" in line for line in drawn(screen)), "what is done takes one line"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [8, 24])
def test_two_hundred_candidates_on_any_terminal(tmp_path, width, height):
    screen = Screen("a run with a very long name indeed", "bleu", [phase(1, 200)], tmp_path)
    screen.hear("dense", {"score": 35.56})
    for number in range(90):
        screen.hear("training", training(f"candidate-{number + 1}", 100, score=30.0, seconds=1.0))
    screen.hear("training", training("candidate-91", 31, loss=0.5))
    screen.hear("training", training("candidate-92", 7, failure="no memory"))
    lines = drawn(screen, width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) < height
    told = " ".join(lines)
    assert "91" in told, "the one that goes on is shown"
    if width >= 60:
        done, waiting = re.search(r"and (\d+) done, (\d+) waiting", told).groups()
        shown = sum("candidate-" in line for line in lines)
        assert int(done) + int(waiting) + shown == 200


def test_facts_that_are_not_known_are_passed_over(tmp_path):
    screen = Screen("soup", folder=tmp_path)
    screen.hear("weather", {"sun": True})
    assert len(drawn(screen)) == 2


def test_messages_arrive_once_and_in_order():
    processes = [Processes(rank=rank, world_size=3) for rank in range(3)]
    for process in processes[1:]:
        process.store = processes[0].store
    boxes = [Mailbox(process, "here") for process in processes]
    boxes[1].send("a")
    boxes[2].send({"x": 1})
    boxes[1].send("b")
    assert list(boxes[0].collect()) == ["a", "b", {"x": 1}]
    boxes[1].send("c")
    assert list(boxes[0].collect()) == ["c"]
    assert list(boxes[0].collect()) == []
    assert list(Mailbox(processes[0], "elsewhere").collect()) == []


def test_lines_have_their_time_and_levels_are_honoured():
    lines, facts = [], []
    with listening(Listener(lines.append, lambda *fact: facts.append(fact), level=30)):
        say("all is well")
        say("candidate-1 failed", 30)
        tell("dense", score=1.0)
    assert [CLOCK.sub("", line) for line in lines] == ["candidate-1 failed"]
    assert CLOCK.match(lines[0])
    assert facts == [("dense", {"score": 1.0})]


# ---- Real runs -----------------------------------------------------------------------------------------------------------

JOB = textwrap.dedent(
    """
    import sys, time
    from transformers import T5Config, T5ForConditionalGeneration, default_data_collator
    from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments

    args = SparseSoupTrainingArguments(sys.argv[1], target_sparsity=0.5, num_candidates=2, max_steps=12, use_cpu=True,
        per_device_train_batch_size=2, save_strategy="no", report_to="none", logging_steps=4, **eval(sys.argv[2]))
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    rows = [{"input_ids": [i % 30 + 1, 3, 1], "labels": [i % 30 + 1, 1]} for i in range(24)]
    def collate(batch):
        time.sleep(0.05)  # Long enough to be seen.
        return default_data_collator(batch)
    SparseSoupTrainer(T5ForConditionalGeneration(config), args, collate, rows, rows[:4]).train()
    print("THE END")
    """
)


def run_on_terminal(command, columns=90, lines=24):
    """Run a command on a terminal of its own; the pictures that it showed, and the text that it left."""
    screen = pyte.HistoryScreen(columns, lines, history=1000)
    stream = pyte.ByteStream(screen)
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    pictures = []
    while True:
        select.select([terminal], [], [])
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Its other end is closed.
            break
        stream.feed(data)
        pictures.append("\n".join(line.rstrip() for line in screen.display))
    _, status = os.waitpid(process, 0)
    above = ["".join(line[column].data for column in range(columns)) for line in screen.history.top]
    return pictures, "\n".join(line.rstrip() for line in [*above, *screen.display]).strip(), status


def command(tmp_path, settings="{}", num_processes=1):
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(num_processes), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    start = [sys.executable, *(launch if num_processes > 1 else [])]
    return [*start, str(tmp_path / "job.py"), str(tmp_path / "run"), settings]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_on_a_terminal(tmp_path, num_processes):
    pictures, left, status = run_on_terminal(command(tmp_path, num_processes=num_processes))
    assert status == 0, left
    view = [picture for picture in pictures if re.search(r"^run  phase 1 of 2  0:00:\d\d$", picture, flags=re.M)]
    assert view, "the view was drawn"
    assert any(re.search(r"^candidate-2 .*\d+/12 ", picture, flags=re.M) for picture in view)
    assert "of disk free" not in left, "the view is gone at the end"
    said = [CLOCK.sub("", line) for line in left.splitlines() if CLOCK.match(line)]
    for line in (
        "dense model: loss",
        "phase 1, candidate-1 (seed=42)",
        "phase 1, candidate-2 (seed=43)",
        "phase 1: mean",
    ):
        assert sum(some.startswith(line) for some in said) == 1, left
    assert left.endswith("THE END")


@pytest.mark.parametrize(
    ("settings", "is_quiet"), [("{'disable_tqdm': True}", False), ("{'log_level': 'error'}", True)]
)
def test_what_trainer_calls_quiet_is_quiet(tmp_path, settings, is_quiet):
    pictures, left, status = run_on_terminal(command(tmp_path, settings))
    assert status == 0, left
    assert any("of disk free" in picture for picture in pictures) == is_quiet
    assert ("phase 1, candidate-1" in left) != is_quiet


def test_a_run_into_a_file(tmp_path):
    text = subprocess.run(command(tmp_path), stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
    lines = text.splitlines()
    assert "\r" not in text
    assert "\x1b" not in text
    assert not re.search(r"[{}]", text), "no dictionaries of Trainer"
    assert all(CLOCK.match(line) for line in lines[:-1])
    assert len(lines) <= 14
    for number in (1, 2):
        log = (tmp_path / f"run/_run/phase-1/candidate-{number}.log").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in log]
        assert [entry["step"] for entry in entries] == [4, 8, 12, 12]
        assert all(entry["max_steps"] == 12 for entry in entries)
        record = json.loads((tmp_path / f"run/_run/phase-1/candidate-{number}.json").read_text(encoding="utf-8"))
        assert record["process"] == 0
        assert record["started"] > 1.7e9
