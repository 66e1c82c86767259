"""What went wrong: the candidate's own fault, or the machine's."""

import errno
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...files.folder import CheckpointError
from ...sparsity.masks import MaskError
from .store import ProcessError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Diverged(RuntimeError):
    """The weights of a candidate are not finite any more."""


def ends_the_run(error: Exception) -> bool:
    """
    Whether an error in a candidate is none of its own: the other candidates would meet it, too, or a promise is broken.

    Disks and folders, other processes, masks that do not hold, packages that are missing. All else costs one candidate.
    """
    if isinstance(error, (ProcessError, dist.DistError, MaskError, CheckpointError, ImportError)) or is_disk_error(
        error
    ):
        return True
    return "gloo/transport" in str(error)  # Another process of the group is gone; NCCL says so by a DistError.


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written. torch and safetensors wrap the system's error in their own, as text."""
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, *READ_ONLY):
        return True
    text = str(error)
    written = "PytorchStreamWriter failed writing" in text or "unexpected pos" in text or "iostream error" in text
    return written or any(f"os error {number}" in text for number in (*NO_ROOM, *READ_ONLY))


def disk_error(error: BaseException, folder: Path, need: int) -> OSError:
    """
    An error that says what to do about the disk.

    Args:
        error (`BaseException`): What was raised.
        folder (`Path`): The run directory.
        need (`int`): Bytes that the run will take at most.
    """
    there = folder if folder.exists() else folder.absolute().parent
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return OSError(
        getattr(error, "errno", None) or errno.EIO,
        f"Could not write in {folder.absolute()}: {error}. The run needs about {need / 1e6:,.0f} MB at its peak and holds "
        f"{used / 1e6:,.0f} MB; the disk has {shutil.disk_usage(there).free / 1e6:,.0f} MB left. Make room (or the folder "
        "writable) and resume with train(resume_from_checkpoint=True) (--resume in the recipes): nothing finished is lost",
    )


def reason(error: Exception, args: Any) -> str:
    """Why a candidate is left out, in one line."""
    if isinstance(error, Diverged):
        return str(error)
    if is_out_of_memory(error):
        return (
            f"out of memory with per_device_train_batch_size={args.per_device_train_batch_size}: lower it and raise "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} by the same factor, or shorten the examples, or set "
            "gradient_checkpointing=True, bf16=True or optim='adafactor'"
        )
    return f"{type(error).__name__}: {error}".splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
