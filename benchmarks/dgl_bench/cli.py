"""dgl-bench: one subcommand a question; heavy imports happen when one runs."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from dgl_bench.command import results_folder, say
from dgl_bench.decode import decode
from dgl_bench.encode import encode
from dgl_bench.index import index
from dgl_bench.moments import moments
from dgl_bench.search import search
from dgl_bench.serve import serve, soak
from dgl_bench.startup import startup
from dgl_bench.train import train
from dgl_runtime.command import Command, fail

ALL = {  # what makes each quick: it tells whether everything runs, not how fast
    "encode": "--rounds 3 --compile=",
    "decode": "--quick --rounds 2",
    "search": "--sizes 10000 --rounds 20",
    "startup": "--rounds 2",
    "train": "--steps 1 --rounds 1",
}
_BENCH = "from dgl_bench.cli import bench; bench(prog_name='dgl-bench')"
_EXPORT = "from dgl_export.cli import export; export(prog_name='dgl-export')"
_RANDOM = ("--zero-shot", "--backbone", "ViT-B-32-quickgelu", "--out")


@click.group()
def bench() -> None:
    """Measure, side by side: all variants in every round, equality checked after the timing."""


@bench.command("all", cls=Command)
@click.option("--bundle", type=click.Path(path_type=Path), help="For startup; made without.")
@click.option("--quick", is_flag=True, help="A few rounds: whether it runs, not how fast.")
@click.option("--out", type=click.Path(path_type=Path), help="As of each benchmark.")
def run_all(bundle: Path | None, quick: bool, out: Path | None) -> None:
    """Run encode, decode, search, startup and train, one after another.

    One that fails does not stop the others; the exit code is then 1.

    Example: dgl-bench all --out results --quick
    """
    folder = out or results_folder()
    failed = []
    with TemporaryDirectory() as made:
        runs = {} if bundle else {"export": [_EXPORT, *_RANDOM, f"{made}/bundle"]}
        for name, less in ALL.items():
            subject = [str(bundle or f"{made}/bundle")] if name == "startup" else []
            options = shlex.split(less) if quick else []
            runs[name] = [_BENCH, name, *subject, *options, "--out", str(folder)]
        for name, arguments in runs.items():
            say(f"{name}: {shlex.join(arguments[1:])}")
            started = time.perf_counter()
            code = subprocess.run([sys.executable, "-c", *arguments], check=False).returncode
            failed += [name] if code else []
            told = f"failed ({code})" if code else "ok"
            click.echo(f"{name:8} {told:12}{time.perf_counter() - started:8.0f} s")
    if failed:
        fail(f"{', '.join(failed)} failed; what each said stands above.")


for command in (decode, encode, index, moments, search, serve, soak, startup, train):
    bench.add_command(command)
