"""The children of a process and their memory, from /proc."""

import os
from collections.abc import Iterator
from pathlib import Path


def children(pid: int) -> Iterator[int]:
    """Processes that a process has started and that still run."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, _read(path).split())


def resident_bytes(pid: int) -> int:
    """Memory of a process that is resident, shared pages included; 0 when it has ended."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:  # it has ended
        return ""
