"""Measurements in processes of their own, and the memory of processes."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import psutil

from dgl_runtime.errors import EngineError

R = TypeVar("R")
# What the numerical libraries read when they are loaded, in the process to come.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def apart(call: Callable[[], R], remedy: str, environment: Mapping[str, str] | None = None) -> R:
    """Call in a fresh process, with some variables set in its environment.

    Raises:
        EngineError: The process was killed; ``remedy`` says what to do about it.
    """
    with (
        patch.dict(os.environ, environment or {}),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        try:
            return pool.submit(call).result()
        except BrokenProcessPool as error:
            raise EngineError(
                f"a process that measures was killed, most likely for want of memory. {remedy}"
            ) from error


def memory_bytes(field: str) -> int | None:
    """Memory of this process by its field of /proc/self/status; None where that is not told.

    ``VmHWM`` is the peak, ``RssAnon`` the process's own, ``RssFile`` pages of mapped files.
    """
    status = Path("/proc/self/status")
    for line in status.read_text("utf-8").splitlines() if status.exists() else ():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return None


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and of its children together; one that has ended counts 0."""
    found = [0, 0]
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        found[0] = process.memory_info().rss
        for child in process.children():
            with suppress(psutil.NoSuchProcess):
                found[1] += child.memory_info().rss
    return found[0], found[1]
