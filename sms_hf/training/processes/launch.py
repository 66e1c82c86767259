"""
How processes are launched: known here alone.

`accelerate launch` and `torchrun` start N processes that expect to train one model together. Here every process trains
candidates of its own, so each must look like a single-process program to Trainer and Accelerate: the launcher's
environment is read, then hidden. What is left for coordination is the key-value store that the launcher's agent keeps
alive for its workers, over all their restarts; with a launcher that has none, process 0 keeps it.
"""

import atexit
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from .store import JOINS, POLL_SECONDS, Processes

# What a launcher sets for collective training. ACCELERATE_* stays: the switches for CPU and mixed precision are there.
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_USE_AGENT_STORE",
)
UNVERIFIED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed keeps its own fp32 copy of the weights and steps inside backward(), so masks "
    "would not hold",
    "ACCELERATE_USE_FSDP": "FSDP is asked for in the arguments (fsdp=True, with candidate_processes), for one candidate at a "
    "time",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM replaces Trainer's optimizer step, so masks would not hold",
}
MEETING_SECONDS = 600.0
LEAVING_SECONDS = 30.0

_joined: Processes | None = None


def join_processes() -> Processes:
    """
    Join the launcher's store once and hide the launch from Trainer and Accelerate.

    Must run before anything asks Accelerate or torch.distributed for the launch: `SparseSoupTrainingArguments` does it.

    Raises:
        RuntimeError: If a process group exists already, or not all processes come.
        ValueError: For DeepSpeed, FSDP and Megatron-LM, which would train dense in silence.
    """
    global _joined
    if _joined is None:
        _joined = _join()
    return _joined


@contextmanager
def single_process() -> Iterator[Processes]:
    """
    Work for one process alone, while the launch goes on outside.

    Inside, `join_processes()` gives a single process of its own: arguments and trainers that are made there train all
    candidates themselves, and a failure does not end the others. For many small runs side by side: fan out the runs, not
    the candidates.
    """
    global _joined
    launch = join_processes()
    _joined = Processes(outer=launch)
    try:
        yield _joined
    finally:
        _joined = launch


def _join() -> Processes:
    for variable, reason in UNVERIFIED.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise ValueError(
                f"Expected a plain launch, got {variable}=true. {reason}. Start with `accelerate launch --multi_gpu` "
                "instead: every process trains whole candidates."
            )
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world_size == 1 and not has_store:
        _hide_launch()
        return Processes()
    if dist.is_initialized():
        raise RuntimeError(
            "Expected no process group before SparseSoupTrainingArguments, but one exists: an Accelerator, PartialState or "
            "other TrainingArguments came first. Create SparseSoupTrainingArguments before them."
        )
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise RuntimeError(
            f"Expected MASTER_ADDR and MASTER_PORT, where {world_size} processes can meet, got none. Start with `accelerate "
            "launch` or `torchrun`, or set both."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = not has_store and rank == 0
    store = dist.PrefixStore("sms_hf", dist.TCPStore(address, port, None, is_host, timedelta(minutes=10)))
    if not has_store:
        atexit.register(_leave, store, rank, world_size)
    shares_gpu = _pin_gpu(int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    _hide_launch()
    processes = meet(store, rank, world_size)
    processes.shares_gpu = shares_gpu
    return processes


def meet(launch: dist.Store, rank: int, world_size: int, patience: float = MEETING_SECONDS) -> Processes:
    """
    Find the other processes that the launcher has started together with this one.

    The store outlives restarts, so it also holds what dead processes wrote, and counts of restarts differ between machines.
    Hence every process brings a new ticket; the main process invites tickets, and begins when all the latest ones have
    accepted:

        process r > 0               store                          process 0
        ticket/r = T        ------> ticket/r
                                    ticket/r             ------->  reads T, the latest of r
                                    invited/T = S        <-------  S: its own ticket
        reads S             <------ invited/T
        accepted/T = S      ------> accepted/T           ------->  S, not the ticket of one that died: r is here
                                    begin/T = session    <-------  when all are here, and nobody has joined meanwhile
        reads the session   <------ begin/T

    A process that died before `accepted` is never waited for under its old ticket: the one that is started in its place
    overwrites `ticket/r`. From `begin` on all of them talk in a part of the store that belongs to the session.

    Raises:
        RuntimeError: If one of them does not come within `patience` seconds.
    """
    ticket, start = uuid.uuid4().hex, time.monotonic()
    launch.set(f"ticket/{rank}", ticket)
    launch.add(JOINS, 1)

    def wait(missing: str) -> None:
        if time.monotonic() - start > patience:
            raise RuntimeError(f"Expected {world_size} processes to meet within {patience:.0f} s, {missing}.")
        time.sleep(POLL_SECONDS / 10)

    if rank > 0:
        while not launch.check([f"begin/{ticket}"]):
            if launch.check([f"invited/{ticket}"]):
                launch.set(f"accepted/{ticket}", launch.get(f"invited/{ticket}").decode())
            wait(f"process {rank} was not met by process 0")
        session, joins = json.loads(launch.get(f"begin/{ticket}"))
    else:
        session = launch.add("sessions", 1)
        while True:
            joins = launch.add(JOINS, 0)
            others = range(1, world_size)
            there = {r: launch.get(f"ticket/{r}").decode() for r in others if launch.check([f"ticket/{r}"])}
            for other in there.values():
                launch.set(f"invited/{other}", ticket)
            # What the dead accepted, they accepted from someone else.
            came = [
                r
                for r, o in there.items()
                if launch.check([key := f"accepted/{o}"]) and launch.get(key) == ticket.encode()
            ]
            absent = sorted(set(others) - set(came))
            if not absent and launch.add(JOINS, 0) == joins:
                break
            wait(f"but {absent} did not come")
        for other in there.values():
            launch.set(f"begin/{other}", json.dumps([session, joins]))
    store = dist.PrefixStore(f"session-{session}", launch)
    return Processes(rank, world_size, store, launch, joins, session)


def _leave(store: dist.Store, rank: int, world_size: int) -> None:
    """Where no launcher keeps the store, process 0 does, and has to leave last."""
    with suppress(dist.DistError):
        store.set(f"left/{rank}", "")
        start = time.monotonic()
        while rank == 0 and time.monotonic() - start < LEAVING_SECONDS:
            if store.check([f"left/{other}" for other in range(world_size)]):
                return
            time.sleep(POLL_SECONDS)


def _hide_launch() -> None:
    for variable in LAUNCHER_VARIABLES:
        os.environ.pop(variable, None)


def _pin_gpu(local_rank: int, local_world_size: int) -> bool:
    """
    Show this process one GPU only: without a launch in sight Trainer would take all of them, and always start at 0.

    Returns:
        `bool`: Whether some GPU of this machine serves several processes.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true") or torch.cuda.device_count() == 0:
        return False
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "Expected CUDA to be untouched before SparseSoupTrainingArguments, but it is initialised. Create the arguments "
            "before anything is moved to a GPU, so that each process can be given its own."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local_rank % len(devices)]
    return local_world_size > len(devices)
