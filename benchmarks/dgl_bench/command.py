"""Makes a command of a function that measures: its signature is the command line."""

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click

from dgl_bench.report import Rendered, Report
from dgl_runtime.command import Command, fail

_FOLDER = Path(__file__).resolve().parents[1]  # benchmarks/ in a checkout

Backbone = Annotated[str, "As dgl-train's."]
Pretrained = Annotated[str, "Weight tag or file; random weights without."]
Threads = Annotated[int, "Of the CPU."]
Out = Annotated[
    Path | None,
    "Folder of the files; default: benchmarks/results of a checkout, else the current folder.",
]


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Numbers above 0 with commas."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            found = tuple(int(number) for number in str(value).split(","))
        except ValueError:
            found = (0,)
        if min(found) < 1:
            self.fail(f"got {value!r}, expected numbers above 0 with commas.", param, ctx)
        return found


def benchmark(measure: Callable[..., Report]) -> Command:
    """A command that prints what a function measures, and writes it to --out.

    What has no default is an argument; the others are options, ``Annotated`` with their help. An int is at
    least 1, but where its default is less; ``tuple[int, ...]`` are numbers with commas, ``Literal`` a choice.
    Parameters that click's own decorators declare are left as they are.
    """

    def run(out: Path | None, **options: Any) -> None:  # noqa: ANN401 - whatever it declares
        folder = out or results_folder()
        folder.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        report = measure(**options)
        rendered = Rendered.of(report, options, load)
        markdown, files = rendered.write(folder)
        click.echo(markdown)
        for path in files:
            click.echo(f"Written: {path}", err=True)
        click.echo(json.dumps(rendered.document(raw=False), separators=(",", ":")))
        if report.wrong:
            fail("; ".join(report.wrong))

    declared = {one.name: one for one in getattr(measure, "__click_params__", [])}
    signature = inspect.signature(measure).parameters.values()
    params = [declared.get(one.name) or _param(one) for one in signature]
    out = _param(
        inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Out)
    )
    name = measure.__name__.replace("_", "-")
    return Command(name, callback=run, params=[*params, out], help=inspect.getdoc(measure))


def _param(one: inspect.Parameter) -> click.Parameter:
    kind, told = (
        get_args(one.annotation)[:2]
        if get_origin(one.annotation) is Annotated
        else (one.annotation, None)
    )
    if one.default is one.empty:
        return click.Argument([one.name], type=click.Path(path_type=Path) if kind is Path else None)
    more: dict[str, Any] = {"default": one.default, "help": told}
    if kind is bool:
        more["is_flag"] = True
    elif kind == tuple[int, ...]:
        more |= {
            "type": _Numbers(),
            "default": ",".join(map(str, one.default)),
            "show_default": True,
        }
    elif kind == tuple[str, ...]:
        more["multiple"] = True
    elif get_origin(kind) is Literal:
        more |= {"type": click.Choice(get_args(kind)), "show_default": True}
    elif kind in (Path, Path | None):
        more["type"] = click.Path(path_type=Path)
    else:
        ranges = (
            {int: click.IntRange(min(1, one.default)), float: click.FloatRange(0, min_open=True)}
            if kind in (int, float)
            else {}
        )
        more |= {"type": ranges.get(kind), "show_default": bool(one.default) or kind is int}
    return click.Option([f"--{one.name.replace('_', '-')}"], **more)


def results_folder() -> Path:
    """Where results go: benchmarks/results in a checkout, the current folder in an installation."""
    is_checkout = _FOLDER.name == "benchmarks" and (_FOLDER.parent / "pyproject.toml").is_file()
    return _FOLDER / "results" if is_checkout else Path()


def say(what: str) -> None:
    """Tell on stderr what is done next."""
    click.echo(what, err=True)


def with_threads(name: str, threads: int) -> str:
    """A report's name where the number of threads is part of the question."""
    return f"{name}-1-thread" if threads == 1 else f"{name}-{threads}-threads"
