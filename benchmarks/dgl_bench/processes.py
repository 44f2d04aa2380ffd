"""Measurements in processes of their own, and the memory of processes, from /proc."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

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


def children(pid: int) -> Iterator[int]:
    """Processes that a process has started and that still run."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, _read(path).split())


def memory_bytes(field: str, pid: int | str = "self") -> int | None:
    """Memory of a process by its field of /proc/PID/status; None where that is not told.

    ``VmRSS`` is resident, shared pages included, ``VmHWM`` its peak, ``RssAnon`` the process's own,
    ``RssFile`` pages of mapped files.
    """
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return None


def resident_bytes(*pids: int) -> int:
    """Resident memory of some processes together; those that have ended count 0."""
    return sum(memory_bytes("VmRSS", pid) or 0 for pid in pids)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:  # it has ended, or the system has no /proc
        return ""
