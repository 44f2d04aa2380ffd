"""dgl-serve as users run it, in a process of its own."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dgl_runtime

CODE = "from dgl_runtime.commands.serve import serve; serve(prog_name='dgl-serve')"


@contextmanager
def serving(*arguments, before=""):
    """The process, when it listens, and its port; killed in the end if it still runs.

    ``before`` is Python that it runs first; ``process.said`` is its first line.
    """
    code = f"{before}; {CODE}" if before else CODE
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(dgl_runtime.__file__).parents[1],
    ) as process:
        try:
            process.said = said = process.stderr.readline()
            assert said.startswith("Serving "), said + process.stderr.read()
            yield process, int(said.rpartition(":")[2])
        finally:
            process.kill()
