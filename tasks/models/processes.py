"""Several processes of one training (torchrun): which of them writes, and where they wait for one another."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from torch import distributed

Found = TypeVar("Found")


def is_first() -> bool:
    """True if this process is the one that writes; true of a process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """True if a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def wait() -> None:
    """Wait until every process is here, where they know one another; a process alone goes on."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def first_alone(work: Callable[[], Found]) -> Found:
    """Do work on the first process and then, on what it left, on the others."""
    if not is_first():
        wait()
        return work()
    try:
        return work()
    finally:
        wait()
