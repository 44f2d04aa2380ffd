"""dgl-bench all: every benchmark with its defaults, each in a process of its own, one after another."""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "encode": ("--rounds", "3", "--compile", ""),
    "decode": ("--quick", "--rounds", "2"),
    "search": ("--sizes", "10000", "--rounds", "20"),
    "startup": ("--rounds", "2"),
    "quality": ("--rounds", "3"),
    "train": ("--steps", "1", "--rounds", "1"),
}
"""Benchmark -> what makes it quick: it tells whether everything runs, not how fast."""

_BENCH = ("-c", "from benchmarks.cli import bench; bench(prog_name='dgl-bench')")
_EXPORT = (
    "-c",
    "from dgl_export.cli import export; export(prog_name='dgl-export')",
    "--zero-shot",
    "--backbone",
    "ViT-B-32-quickgelu",
)


@dataclass(frozen=True)
class Outcome:
    """How one benchmark ended."""

    name: str
    exit_code: int
    seconds: float


def run_all(out: Path, bundle: Path, demo: Path, *, quick: bool) -> list[Outcome]:
    """Run all benchmarks one after another; one that fails does not stop the others.

    Args:
        out: Folder for their results.
        bundle: What startup opens; made from random weights if it is not there.
        demo: What demo.sh made: its run and its shapes are what quality measures.
        quick: A few rounds only.
    """
    outcomes = []
    if not bundle.exists():
        outcomes.append(_timed("export", [*_EXPORT, "--out", str(bundle)]))
    subjects = {
        "startup": (str(bundle),),
        "quality": (str(demo / "run"), "--dataset", "shapes", "--data-root", str(demo / "shapes")),
    }
    for name, less in BENCHMARKS.items():
        options = (*subjects.get(name, ()), *(less if quick else ()), "--out", str(out))
        outcomes.append(_timed(name, [*_BENCH, name, *options]))
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """How all of them ended, a line each."""
    return "\n".join(
        f"{one.name:8} {'ok' if one.exit_code == 0 else f'failed ({one.exit_code})':12}"
        f"{one.seconds:8.0f} s"
        for one in outcomes
    )


def _timed(name: str, arguments: Sequence[str]) -> Outcome:
    """Run Python with some arguments in a fresh process."""
    click.echo(f"{name}: {shlex.join(arguments[2:])}", err=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=False)
    return Outcome(name, done.returncode, time.perf_counter() - started)
