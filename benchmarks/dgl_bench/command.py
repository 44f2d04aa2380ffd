"""Makes a command of a function that measures: its signature is the command line."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click

from dgl_bench.quiet import QUIET_CORES, OtherWork, busy_cores
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


def benchmark(measure: Callable[..., Report]) -> Command:
    """A command that prints what a function measures, and writes it to --out.

    A path without a default is an argument; the others are options, ``Annotated`` with their help. An int is
    at least 1, but where its default is less; ``tuple[int, ...]`` are numbers with commas, ``Literal`` a
    choice. Parameters that click's own decorators declare are left as they are.
    """

    def run(out: Path | None, **options: Any) -> None:  # noqa: ANN401 - whatever it declares
        folder = out or results_folder()
        folder.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
        if (busy := busy_cores()) > QUIET_CORES:
            say(
                f"Other work keeps {busy:.1f} cores busy: the report will be marked, if it goes on."
            )
        others = OtherWork()
        report = measure(**options)
        rendered = Rendered.of(report, options, others.cores())
        markdown, files = rendered.write(folder)
        click.echo(markdown)
        for path in files:
            click.echo(f"Written: {path}", err=True)
        click.echo(json.dumps(rendered.document(raw=False), separators=(",", ":")))
        if report.wrong:
            fail("; ".join(report.wrong))

    declared = {one.name: one for one in getattr(measure, "__click_params__", [])}
    signature = inspect.signature(measure).parameters.values()
    params = [
        declared.get(one.name) or _param(one.name, one.annotation, one.default) for one in signature
    ]
    params.append(_param("out", Out, None))
    return Command(measure.__name__, callback=run, params=params, help=inspect.getdoc(measure))


def _param(name: str, annotation: Any, default: Any) -> click.Parameter:  # noqa: ANN401
    kind, *told = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if default is inspect.Parameter.empty:
        return click.Argument([name], type=click.Path(path_type=Path))
    more: dict[str, Any] = {"is_flag": True} if kind is bool else {}
    if kind == tuple[int, ...]:
        more, default = {"callback": _read_numbers}, ",".join(map(str, default))
    elif get_origin(kind) is Literal:
        more["type"] = click.Choice(get_args(kind))
    elif kind is int:
        more["type"] = click.IntRange(min(1, default))
    elif kind is float:
        more["type"] = click.FloatRange(0, min_open=True)
    elif kind == Path | None:
        more["type"] = click.Path(path_type=Path)
    shown = default not in (None, "", False)
    option = f"--{name.replace('_', '-')}"
    return click.Option([option], default=default, show_default=shown, help="".join(told), **more)


def _read_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(number) for number in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise click.BadParameter(f"got {text!r}, expected numbers above 0 with commas.")
    return found


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
