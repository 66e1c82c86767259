"""
The only room that knows there are several processes.

`accelerate launch` and `torchrun` start N processes that expect to train one model together. Here every process trains
candidates of its own, so each must look like a single-process program to Trainer and Accelerate: the launcher's
environment is read, then hidden. What is left for coordination is the key-value store that the launcher's agent keeps
alive for its workers: small JSON values; weights travel as files.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

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
    "ACCELERATE_USE_FSDP": "FSDP replaces the parameters by shards, for which masks are not verified yet",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM replaces Trainer's optimizer step, so masks would not hold",
}
POLL_SECONDS = 0.2
FAILED = "failed"


@dataclass
class Processes:
    """
    The processes of one launch, and a store that they share.

    Attributes:
        rank (`int`): This process, from 0. Process 0 is the main process: it prunes, averages and writes reports.
        world_size (`int`): How many there are.
    """

    rank: int = 0
    world_size: int = 1
    store: dist.Store | None = None
    _local: dict[str, Any] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def take(self, key: str) -> int:
        """The next number of a counter that all processes share: 0, 1, 2, ..."""
        key = f"counter/{key}"  # A value may be published under the same key.
        if self.store is not None:
            return self.store.add(key, 1) - 1
        self._local[key] = self._local.get(key, -1) + 1
        return self._local[key]

    def publish(self, key: str, value: Any) -> None:
        """Make a JSON value known to all processes."""
        if self.store is not None:
            self.store.set(key, json.dumps(value))
        else:
            self._local[key] = value

    def receive(self, key: str) -> Any:
        """
        Wait for a value that another process publishes.

        Raises:
            RuntimeError: If another process failed meanwhile, so that nobody waits for what will never come.
        """
        if self.store is None:
            return self._local[key]
        while not self.store.check([key]):
            if self.store.check([FAILED]):
                raise RuntimeError(json.loads(self.store.get(FAILED)))
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(key))

    def on_main(self, key: str, function: Callable[[], Any]) -> Any:
        """Call `function` on the main process; every process returns its (JSON) result."""
        if not self.is_main:
            return self.receive(key)
        value = function()
        self.publish(key, value)
        return value

    def fan_out(self, key: str, items: Sequence[Any], work: Callable[[Any], None]) -> None:
        """
        Call `work` once for every item, on whichever process is free next, and return when all are done.

        A shared counter balances items of different length; nothing collective happens inside an item.
        """
        while (number := self.take(f"{key}/next")) < len(items):
            work(items[number])
            self.publish(f"{key}/done/{number}", True)
        for number in range(len(items)):
            self.receive(f"{key}/done/{number}")

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process gives up."""
        self.publish(FAILED, f"Process {self.rank} of {self.world_size} failed: {type(error).__name__}: {error}")


_joined: Processes | None = None


def join_processes() -> Processes:
    """
    Join the launcher's store once and hide the launch from Trainer and Accelerate.

    Must run before anything asks Accelerate or torch.distributed for the launch: `SparseSoupTrainingArguments` does it.

    Raises:
        RuntimeError: If a process group exists already, or the launcher has no store.
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
    launch, _joined = join_processes(), Processes()
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
    if world_size == 1:
        _hide_launch()
        return Processes()
    if dist.is_initialized():
        raise RuntimeError(
            "Expected no process group before SparseSoupTrainingArguments, but one exists: an Accelerator, PartialState or "
            "other TrainingArguments came first. Create SparseSoupTrainingArguments before them."
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise RuntimeError(
            f"Expected a launcher that keeps a store for its {world_size} processes, got none. "
            "Start with `accelerate launch` or `torchrun`."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore("sms_hf", dist.TCPStore(address, port, None, False, timedelta(minutes=10)))
    _pin_gpu(int(os.environ.get("LOCAL_RANK", rank)))
    _hide_launch()
    return Processes(rank, world_size, store)


def _hide_launch() -> None:
    for variable in LAUNCHER_VARIABLES:
        os.environ.pop(variable, None)


def _pin_gpu(local_rank: int) -> None:
    """Show this process one GPU only: without a launch in sight Trainer would take all of them, and always start at 0."""
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true") or torch.cuda.device_count() == 0:
        return
    if torch.cuda.is_initialized():
        raise RuntimeError(
            "Expected CUDA to be untouched before SparseSoupTrainingArguments, but it is initialised. Create the arguments "
            "before anything is moved to a GPU, so that each process can be given its own."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local_rank % len(devices)]
