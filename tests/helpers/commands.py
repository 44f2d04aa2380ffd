"""Run the commands of the runtime as a user does, in a process of their own."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner

import dgl_runtime

CODE = """import sys
{before}
from dgl_runtime.commands.{command} import {command}
{command}(prog_name='dgl-{command}')"""


@contextmanager
def start(command, *arguments, before="", prefix=(), **options):
    """Start a command; ``before`` is code that runs first, ``prefix`` a program that starts it.

    It is killed in the end if it still runs: a test that fails must not wait for it.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])}
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", CODE.format(command=command, before=before), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env=environment,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(command, *arguments, before="", prefix=(), timeout_s=60, **options):
    """Run a command to its end: exit code, stdout and stderr."""
    with start(command, *arguments, before=before, prefix=prefix, **options) as process:
        out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def invoke(command, *arguments):
    """Run a command that succeeds and says nothing on stderr; its stdout."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def failure(command, *arguments, before="", prefix=()):
    """The one line a command that fails prints on stderr, in a process of its own."""
    code, out, err = run(command, *map(str, arguments), before=before, prefix=prefix)
    assert code == 1, err
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err[len("Error: ") : -1], out


def as_a_user():
    """What starts a program to which permissions apply, also where root runs the tests."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
