"""Run the commands of the runtime as a user does, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import dgl_runtime

CODE = "import sys\n{before}\nfrom dgl_runtime.cli import {command}\n{command}(prog_name='dgl-{command}')"


def start(command, *arguments, before="", **options):
    """Start dgl-index, dgl-search or dgl-verify; ``before`` is code that runs first."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", CODE.format(command=command, before=before), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env=environment,
        **options,
    )


def run(command, *arguments, before="", timeout_s=60):
    """Run a command to its end: exit code, stdout and stderr."""
    with start(command, *arguments, before=before) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err
