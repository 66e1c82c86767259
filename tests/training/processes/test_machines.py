"""Real launches that lose a process, on one machine and on two: the same soup, bit for bit."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import collate, reversal, tiny_t5
from sms_hf import SparseSoupTrainer, SparseSoupTrainingArguments
from sms_hf.training.processes.say import say
from transformers import TrainerCallback

output, fault = sys.argv[1], sys.argv[2]
once = Path(output + ".once")

class Fault(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        where = Path(args.output_dir)
        say(f"BEGINS {{where.parent.name}} {{where.name}} {{state.global_step}} ")

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("phase-1/candidate-2") and state.global_step == 5 and not once.exists():
            once.touch()
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "preempt":
                os.kill(os.getpid(), signal.SIGTERM)
            if fault == "hang":
                time.sleep(1000)
        if fault == "wait":
            time.sleep(0.3)  # Slow enough for machines to come and go.
            if os.environ["MACHINE"] == "second" and not once.exists():
                once.touch()
                time.sleep(1000)

args = SparseSoupTrainingArguments(
    output_dir=output, target_sparsity=0.75, num_phases=2, num_candidates=3, max_steps=8, learning_rate=3e-3,
    per_device_train_batch_size=4, save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True,
    candidate_processes=int(os.environ.get("GROUP", 1)), dataloader_pin_memory=False, use_cpu=True,
    ddp_timeout=int(os.environ.get("TIMEOUT", 1800)),
)
say(f"PROCESS {{args.processes.rank}} {{args.processes.world_size}} {{args.processes.session}} ")
Path(output + f".world-{{args.processes.world_size}}").touch()
Path(output + ".pid-" + os.environ.get("MACHINE", "")).write_text(str(os.getpid()))
trainer = SparseSoupTrainer(
    model=tiny_t5(), args=args, train_dataset=reversal(24), eval_dataset=reversal(10, seed=1), data_collator=collate,
    callbacks=[Fault()],
)
trainer.train(resume_from_checkpoint="resume" in sys.argv)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO_PROCESSES = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]


class Job:
    """A script, where it writes to, and one launch of it after the other."""

    def __init__(self, folder: Path):
        self.script, self.run = folder / "train.py", folder / "run"
        self.script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2])))

    def start(self, *options: str, launcher=(sys.executable,), **environment: str) -> subprocess.Popen:
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
        command = [*launcher, str(self.script), str(self.run), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def models(self) -> dict[str, str]:
        """Checksums of all that is left: soups, masks and the final model."""
        return {
            str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.run.rglob("*.safetensors")
        }


def end(process: subprocess.Popen, seconds: float = 240.0) -> tuple[int, str, str]:
    """Exit status and what was printed; nothing that was started stays."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def wait_for(path: Path, seconds: float = 120.0) -> None:
    start = time.monotonic()
    while not path.exists():
        assert time.monotonic() - start < seconds, f"{path} did not come"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def begins(out: str, phase: int, candidate: int) -> list[int]:
    """The steps at which a candidate's training was begun."""
    return [int(step) for step in re.findall(rf"BEGINS phase-{phase} candidate-{candidate} (\d+) ", out)]


def joined(out: str) -> list[tuple[int, int, int]]:
    """Rank, number of processes and session of all that were started, in the order in which they said so."""
    return [(int(a), int(b), int(c)) for a, b, c in re.findall(r"PROCESS (\d+) (\d+) (\d+) ", out)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    status, _, err = end(job.start("none"))
    assert status == 0, err
    return job.models()


def test_a_killed_process_costs_the_steps_since_its_checkpoint(tmp_path, undisturbed):
    job = Job(tmp_path)
    status, out, err = end(job.start("kill", launcher=[*TWO_PROCESSES, "--max_restarts", "2"]))
    assert status == 0, err
    assert job.models() == undisturbed
    assert begins(out, 1, 2) == [0, 4], "killed at step 5, saved at step 4"
    assert begins(out, 1, 3)[0] == 0
    assert begins(out, 2, 1) == [0], "after the restart nothing is disturbed"
    assert sorted(joined(out)) == [(rank, 2, session) for rank in (0, 1) for session in (1, 2)]


@pytest.mark.parametrize("processes", [1, 2])
def test_preemption_saves_the_step_and_says_how_to_go_on(tmp_path, undisturbed, processes):
    job, launcher = Job(tmp_path), TWO_PROCESSES if processes == 2 else [sys.executable]
    status, out, err = end(job.start("preempt", launcher=launcher))
    assert status == (143 if processes == 1 else 1), err
    assert "candidate-2: saved at step 5" in out
    assert "SIGTERM: stopped, nothing finished is lost. Go on with train(resume_from_checkpoint=True)" in out
    if processes == 1:  # With more the launcher has its own to say.
        assert "Traceback" not in err, "a stop is no error"
    status, again, err = end(job.start("none", "resume", launcher=launcher))
    assert status == 0, err
    assert begins(again, 1, 2) == [5]
    if processes == 1:
        assert begins(again, 1, 1) == [], "what is finished is not begun again"
    assert job.models() == undisturbed


def test_groups_give_what_one_group_gives_and_survive(tmp_path):
    """Candidates of two processes each: one group that is killed once, and two groups side by side."""
    made = []
    for processes, fault in ((2, "kill"), (4, "none")):
        (folder := tmp_path / str(processes)).mkdir()
        job = Job(folder)
        launcher = [*TORCHRUN, "--standalone", "--nproc_per_node", str(processes), "--max_restarts", "1"]
        status, out, err = end(job.start(fault, launcher=launcher, GROUP="2"))
        assert status == 0, err
        made.append(job.models())
        assert begins(out, 1, 2)[-2:] == ([4, 4] if fault == "kill" else [0, 0]), "both processes of the group"
    assert made[0] == made[1]


def test_a_restart_without_the_launcher_is_refused_without_resume(tmp_path):
    job = Job(tmp_path)
    end(job.start("kill"))
    status, _, err = end(job.start("none"))
    assert status == 1
    assert "holds a run. Continue it with" in err


def machines(job: Job, fault: str, *options: str) -> list[tuple[int, str, str]]:
    """Two launchers of one process each, as on two machines."""
    where = ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--nnodes", "2", "--nproc_per_node", "1"]
    started = [job.start(fault, launcher=[*TORCHRUN, *where, "--node_rank", str(rank), *options]) for rank in (0, 1)]
    return [end(process) for process in started]


def test_two_machines_make_the_same_soup(tmp_path, undisturbed):
    job = Job(tmp_path)
    results = machines(job, "none")
    assert [status for status, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert [joined(out) for _, out, _ in results] == [[(0, 2, 1)], [(1, 2, 1)]]
    assert job.models() == undisturbed


def test_a_restart_on_one_machine_restarts_the_other(tmp_path, undisturbed):
    """With a fixed set of machines launchers do not tell each other: the processes find out."""
    job = Job(tmp_path)
    results = machines(job, "kill", "--max_restarts", "2")
    assert [status for status, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert "The launcher has started another process again" in results[0][2] + results[1][2]
    assert job.models() == undisturbed


@pytest.mark.long
def test_a_process_that_hangs_is_named(tmp_path):
    job, start = Job(tmp_path), time.monotonic()
    status, _, err = end(job.start("hang", launcher=TWO_PROCESSES, TIMEOUT="5"))
    assert status == 1
    assert "has given no sign for" in err
    assert "at candidate-2 of phase 1" in err
    assert time.monotonic() - start < 120, "the launcher waits 30 s for the one that hangs"


def test_processes_without_a_launcher_meet_at_the_first(tmp_path, undisturbed):
    """As on a cluster whose scheduler starts them."""
    job, port = Job(tmp_path), str(free_port())
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    results = [end(p) for p in [job.start("none", RANK=rank, LOCAL_RANK=rank, **where) for rank in ("0", "1")]]
    assert [status for status, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert job.models() == undisturbed


@pytest.mark.long
def test_a_machine_that_comes_later_and_one_that_goes_away(tmp_path, undisturbed):
    job, port = Job(tmp_path), free_port()
    elastic = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts", "5", "--rdzv_backend", "c10d"]
    elastic += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "soup"]
    elastic += ["--rdzv_conf", "join_timeout=60,last_call_timeout=1,keep_alive_interval=1"]
    # torch 2.13 does not tell a newcomer where a store is that was there before it.
    settings = {"launcher": [*TORCHRUN, *elastic], "TIMEOUT": "10", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    first = job.start("wait", "resume", MACHINE="first", **settings)
    wait_for(Path(f"{job.run}.world-1"))
    second = job.start("wait", "resume", MACHINE="second", **settings)
    wait_for(Path(f"{job.run}.world-2"))
    wait_for(Path(f"{job.run}.once"))  # Here the second machine is in the middle of a candidate.
    os.killpg(second.pid, signal.SIGKILL)
    os.kill(int(Path(f"{job.run}.pid-second").read_text()), signal.SIGKILL)  # The launcher gave it a group of its own.
    status, out, err = end(first)
    end(second)
    assert status == 0, err
    assert job.models() == undisturbed
    assert [world for _, world, _ in joined(out)] == [1, 2, 1], out
