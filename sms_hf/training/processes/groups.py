"""
Candidates that several processes train together.

The processes of a launch are split into groups of `candidate_processes` neighbours, for a trunk of up to `trunk_processes`.
Each group takes the next candidate, and while it is trained, and only then, its processes see a launch of their own: a
process group, and the variables by which Trainer and Accelerate find it. Around that every process is alone, as `launch`
makes it: parents are read, candidates written and scored by the leader of a group as if it had trained them itself.
"""

import atexit
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from .store import POLL_SECONDS, Processes

GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# What Accelerate leaves in the environment besides: an address, its switch for FSDP and the options of that.
TOUCHED = (*GROUP_VARIABLES, "MASTER_ADDR", "MASTER_PORT")
TOUCHED_PREFIXES = ("ACCELERATE_", "FSDP_")


@dataclass(frozen=True)
class Group:
    """
    The processes that train one candidate.

    Attributes:
        number (`int`): This group, from 0.
        rank (`int`): This process within its group. Process 0 leads: it takes candidates, and writes and scores them.
        size (`int`): Processes in the group.
        processes ([`Processes`]): All processes of the launch.
    """

    number: int
    rank: int
    size: int
    processes: Processes

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


def make_group(processes: Processes, size: int) -> Group:
    """
    The group of this process.

    Raises:
        ValueError: If the processes cannot be split into groups of `size`, or would meet on one GPU.
    """
    if size < 1 or processes.world_size % size:
        raise ValueError(
            f"candidate_processes must divide the number of processes, got {size} of {processes.world_size}. Start with "
            f"`torchrun --nproc_per_node N` or `accelerate launch --num_processes N`, N a multiple of candidate_processes."
        )
    if size > 1 and processes.shares_gpu:
        raise ValueError(
            f"candidate_processes={size} needs a GPU for every process, got fewer GPUs than processes: NCCL takes no device "
            "twice. Start as many processes as there are GPUs, or leave candidate_processes out: processes may share a GPU, "
            "each with a candidate of its own."
        )
    return Group(processes.rank // size, processes.rank % size, size, processes)


_active: Group | None = None


def is_in_group() -> bool:
    """Whether this process is in a [`training_group`] with others."""
    return _active is not None


@contextmanager
def training_group(group: Group, name: str, cpu: bool, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """
    Show the processes of a group to Trainer and Accelerate while the context lasts.

    `TrainingArguments` that are made inside see `group.size` processes, and their Trainer trains by DDP or FSDP. Whatever
    was made inside can no longer train or evaluate outside. If one process leaves by an error, the others get an error from
    what they were waiting for.

    Args:
        group ([`Group`]): The processes. Of a group of one, nothing is changed.
        name (`str`): Equal in the group, and new for every candidate and attempt of the launch.
        cpu (`bool`): Whether the candidate is trained on CPUs.
        timeout (`timedelta`): How long a process waits for another in one collective operation (`args.ddp_timeout`).

    Raises:
        RuntimeError: If there is a process group already, the name was used before, or another process failed.
    """
    global _active
    if group.size == 1:
        yield
        return
    if dist.is_initialized():
        raise RuntimeError(
            "Expected a launch without a process group, got one that exists already. Groups are made by sms_hf alone: create "
            "no Accelerator and call no init_process_group."
        )
    store = dist.PrefixStore(f"group-{group.number}/{name}", group.processes.store)
    if store.add(f"entered-{group.rank}", 1) != 1:
        raise RuntimeError(f"Expected a new name for every training of a group, got {name!r} again.")
    _ended.clear()
    environment, states = _touched(), [dict(state._shared_state) for state in _STATES]
    # Every process sees one GPU only (`launch` pins it), which is its GPU 0. Not tested: there was no machine with several.
    local_rank = group.rank if cpu else 0
    values = (group.rank, group.size, local_rank, group.size)
    try:
        backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend, store=dist.PrefixStore("pg", store), rank=group.rank, world_size=group.size, timeout=timeout
        )
        os.environ.update({name: str(value) for name, value in zip(GROUP_VARIABLES, values, strict=True)})
        _active = group
        yield
        _leave_together(store, group)
        _ended.append(dist.group.WORLD)
    except BaseException as error:
        store.set("failed", f"Process {group.rank} of the group failed: {type(error).__name__}: {error}")
        raise
    finally:
        _active = None
        if dist.is_initialized():
            dist.destroy_process_group()
        for variable in set(_touched()) - set(environment):
            del os.environ[variable]
        os.environ.update(environment)
        for state, values in zip(_STATES, states, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


# The last process group of this process, kept alive until the next one. DDP's reducer would else free it while it holds
# Python's lock, and wait for threads of gloo that may want the lock to free the tensors of the last operation: a deadlock,
# seen with torch 2.13 within a hundred groups.
_ended: list[Any] = []


@atexit.register
def _end_threads() -> None:
    """Free it before the interpreter is taken down: a thread that wants the lock after that ends the process with SIGABRT."""
    gc.collect()  # Trainers, whose DDP holds it as well.
    _ended.clear()


_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)


def _touched() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k in TOUCHED or k.startswith(TOUCHED_PREFIXES)}


def _leave_together(store: dist.Store, group: Group) -> None:
    """Wait for the others by the store: a process that left first would cut connections that they still read from."""
    store.set(f"left-{group.rank}", "")
    while not store.check([f"left-{rank}" for rank in range(group.size)]):
        if store.check(["failed"]):
            raise RuntimeError(store.get("failed").decode())
        time.sleep(POLL_SECONDS / 10)


def agree(decide: Callable[[], Any]) -> Any:
    """What the leader of the active group decides, on every process of it; outside of groups each decides for itself."""
    if _active is None:
        return decide()
    values = [decide() if _active.is_leader else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def anyone(wish: bool) -> bool:
    """Whether any process of the active group has a wish."""
    if _active is None:
        return wish
    wishes = torch.tensor(int(wish))
    dist.all_reduce(wishes, dist.ReduceOp.MAX)
    return bool(wishes)


def wait_for_group() -> None:
    """Wait until all processes of the active group are here."""
    anyone(False)
