"""Commands whose processes read videos, run as a user does, and what of them can be killed."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import dgl_train

CODE = "from dgl_train.commands.{name} import {name}; {name}(prog_name={name!r})"
PATIENCE_S = 120.0


def command(name, *arguments):
    """The command line of dgl-train ("train") or dgl-data ("data")."""
    return [sys.executable, "-c", CODE.format(name=name), *map(str, arguments)]


@contextmanager
def started(line, **environment):
    """A running command; it is not left behind."""
    here = str(Path(dgl_train.__file__).parents[1])
    settings = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        line,
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process):
    """Exit code, stdout, and the lines of stderr without progress bars; a hang is a failure."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, [line for line in err.splitlines() if not is_progress(line)]


def is_progress(line):
    return line in ("", "Computing on cpu.") or "clips/s" in line or "video/s" in line


def run(line, **environment):
    """Run a command to its end; see ``ended``."""
    with started(line, **environment) as process:
        return ended(process)


def readers(main):
    """The numbers of the processes that read videos for a command."""
    found = []
    for task in Path(f"/proc/{main.pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(pid) for pid in task.read_text().split()]
    # decode_worker.py verifies, read_worker.py reads for training.
    return [pid for pid in found if re.search(rb"(read|decode)_worker", _command_line(pid))]


def _command_line(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def await_readers(main):
    """Wait until some read, or the command has ended; which they are."""
    deadline = time.monotonic() + PATIENCE_S
    while main.poll() is None:
        if found := readers(main):
            return found
        assert time.monotonic() < deadline, "no process reads"
        time.sleep(0.002)
    return []
