"""Candidates that go wrong, and errors that are not theirs."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from sms_hf import MaskError, format_report
from sms_hf.files import records
from sms_hf.files.records import read_record
from sms_hf.training.processes.failures import ends_the_run, is_disk_error, is_out_of_memory
from sms_hf.training.processes.stopping import (
    Interrupted,
    Stopped,
    leave_if_wished,
    leave_on_signals,
    stop_on_signals,
    stop_wished,
)
from sms_hf.training.processes.store import ProcessError
from sms_hf.training.run.bench import Bench


class Raises(TrainerCallback):
    """Raises in the second candidate of every phase, after its first step."""

    error: Exception | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("candidate-2") and Raises.error is not None:
            raise Raises.error


@pytest.fixture
def raises(monkeypatch):
    return lambda error: monkeypatch.setattr(Raises, "error", error)


@pytest.fixture
def make(make_trainer):
    return lambda **changes: make_trainer({"num_candidates": 3, **changes}, callbacks=[Raises()])


def models(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_an_exception_costs_one_candidate(make, raises, tmp_path, capfd):
    raises(KeyError("the cat sat on the keyboard"))
    trainer = make()
    trainer.train()
    for phase in trainer.report["phases"]:
        assert [c["failure"] for c in phase["candidates"]] == [None, "KeyError: 'the cat sat on the keyboard'", None]
        assert "on_step_end" in phase["candidates"][1]["traceback"]
        assert "candidate-2" not in phase["soup"]["ingredients"]
    assert "candidate-2 seed=43 (failed)" in format_report(trainer.report)
    out, err = capfd.readouterr()
    assert "candidate-2 (seed=43): failed, left out: KeyError" in out
    assert "Traceback" in err


def test_out_of_memory_names_what_lowers_it(make, raises):
    raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    trainer = make(num_phases=1)
    trainer.train()
    failure = trainer.report["phases"][0]["candidates"][1]["failure"]
    assert (
        "out of memory with per_device_train_batch_size=4: lower it and raise gradient_accumulation_steps=1" in failure
    )
    assert is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    )


def test_too_few_end_the_run_and_are_tried_again_on_resume(make, raises, tmp_path):
    raises(RuntimeError("no GPU today"))
    with pytest.raises(
        RuntimeError, match=r"at least min_candidates=3 of the 3 .* 1 failed \(candidate-2: RuntimeError: no GPU"
    ):
        make(min_candidates=3).train()
    assert read_record(tmp_path / "run/_run/phase-1/candidate-1.json")["failure"] is None
    assert not (tmp_path / "run/_run/phase-1/candidate-3.json").exists(), "nobody trains for nothing"
    raises(None)
    make(min_candidates=3).train(resume_from_checkpoint=True)
    make(output_dir=str(tmp_path / "undisturbed")).train()
    assert models(tmp_path / "run") == models(tmp_path / "undisturbed")


@pytest.mark.parametrize("wrong", [0, 4])
def test_min_candidates_is_checked(make_args, wrong):
    with pytest.raises(ValueError, match="min_candidates must lie between 1 and 3"):
        make_args(num_candidates=3, min_candidates=wrong)


# ---- The machine's fault ---------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_room_brings_it_back(make, tmp_path, monkeypatch):
    written, replace = [], records.write_json

    def full(path, value):
        if path.name == "candidate-2.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        replace(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_json", full)
        expected = rf"Could not write in {tmp_path}/run: .*needs about 1 MB.* Make room .*resume_from_checkpoint=True"
        with pytest.raises(OSError, match=expected) as raised:
            make().train()
    assert raised.value.errno == errno.ENOSPC
    assert "candidate-1.json" in written
    make().train(resume_from_checkpoint=True)
    make(output_dir=str(tmp_path / "undisturbed")).train()
    assert models(tmp_path / "run") == models(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(torch.zeros(100_000), path), lambda path: path.write_text("a")]
)
def test_a_full_disk_is_known_in_every_wrapping(write):
    """A real one: /dev/full takes no byte."""
    with pytest.raises((OSError, RuntimeError)) as raised:
        write(Path("/dev/full"))
    assert is_disk_error(raised.value), raised.value


def test_errors_that_are_not_of_the_disk():
    assert is_disk_error(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_error(FileNotFoundError(errno.ENOENT, "no such file"))
    assert not is_disk_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("error", [MaskError("revived"), ProcessError("hangs"), OSError(errno.EROFS, "read-only")])
def test_these_are_nobodys_candidate(error):
    assert ends_the_run(error)
    assert not ends_the_run(ValueError("a bug in a collator"))


def test_a_broken_mask_ends_the_run_with_tensor_and_indices(make_trainer, monkeypatch):
    class Revive(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                weight = model.encoder.block[0].layer[0].SelfAttention.q.weight
                weight[3, (weight[3] == 0).nonzero()[0]] = 1.0

    trainer = make_trainer({"save_strategy": "steps", "save_steps": 1}, callbacks=[Revive()])
    with pytest.raises(
        MaskError, match=r"'encoder.block.0.layer.0.SelfAttention.q.weight' .* 1 are not, first at \[\(3, "
    ):
        trainer.train()


# ---- Signals ---------------------------------------------------------------------------------------------------------


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_signal_is_noted_and_asked_for(capsys):
    """Raised from a handler it may get lost in C++ code: torch makes "could not determine the shape" of it."""
    before, reached = signal.getsignal(signal.SIGTERM), []

    def run():
        with stop_on_signals():
            send(signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and the launcher that passes it on.
            reached.append(stop_wished())
            leave_if_wished()
            reached.append("here")

    with pytest.raises(Stopped) as raised:
        run()
    assert (reached, raised.value.code, raised.value.signal) == ([True], 130, "SIGINT")
    assert capsys.readouterr().out.endswith(" SIGINT: ending after this step\n")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stop_wished()


def test_a_second_wish_does_not_wait(monkeypatch):
    monkeypatch.setattr("sms_hf.training.processes.stopping.ECHO_SECONDS", 0.0)
    reached = []

    def run():
        with stop_on_signals():
            send(signal.SIGINT)
            reached.append(1)
            send(signal.SIGINT)
            reached.append(2)

    with pytest.raises(Stopped):
        run()
    assert reached == [1]


def test_outside_of_a_run_a_signal_ends_the_program_where_it_stands(monkeypatch):
    """Its launcher may pass SIGINT on as SIGTERM, a millisecond after the first: the program still ends as it should."""
    monkeypatch.setattr("sms_hf.training.processes.stopping._since", -10.0)
    before, reached = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}, []

    def work():
        with leave_on_signals():
            with stop_on_signals():
                reached.append("a run")
            try:
                send(signal.SIGINT)
            finally:
                send(signal.SIGINT)  # The launcher passes it on: what is being tidied up is not broken off.
                reached.append("tidied up")

    try:
        with pytest.raises(Interrupted) as raised:
            work()
        send(signal.SIGTERM)
        reached.append("ended")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (reached, raised.value.code) == (["a run", "tidied up", "ended"], 130)


def test_a_stop_costs_no_candidate(make_trainer, tmp_path, monkeypatch):
    """Wherever a signal comes: here while a candidate is scored after its training."""

    class Judged(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            if list((tmp_path / "run/_run/phase-1").glob("candidate-2/model.safetensors")):
                send(signal.SIGTERM)

    def judge(self, model):
        made = of_the_bench(self, model)
        made.add_callback(Judged())
        return made

    of_the_bench = Bench.judge
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "judge", judge)
        with pytest.raises(Stopped):
            make_trainer().train()
    assert not (tmp_path / "run/_run/phase-1/candidate-2.json").exists()
    make_trainer().train(resume_from_checkpoint=True)
    make_trainer({"output_dir": str(tmp_path / "undisturbed")}).train()
    assert models(tmp_path / "run") == models(tmp_path / "undisturbed")
