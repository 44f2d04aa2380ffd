"""dgl-bench: one subcommand a question; heavy imports happen when one runs."""

from pathlib import Path

import click

from dgl_runtime.command import Command

METHODS = ("dgl-linear", "dgl-transformer")  # dgl_train.checkpoint.METHODS, without importing torch


@click.group()
def bench() -> None:
    """Measure, side by side: all variants in every round, equality checked after the timing."""


@bench.command(cls=Command)
@click.option("--backbone", default="ViT-B-32-quickgelu", show_default=True, help="As dgl-train's.")
@click.option("--pretrained", default="", help="Weight tag or file; random weights without.")
@click.option("--num-frames", type=click.IntRange(1), default=12, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@click.option("--method", type=click.Choice([*METHODS, "both"]), default="both", show_default=True)
@click.option("--compile/--no-compile", "with_compile", default=True, help="torch.compile too.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder for the JSON and markdown files.",
)
def encode(
    backbone: str,
    pretrained: str,
    num_frames: int,
    threads: int,
    rounds: int,
    method: str,
    with_compile: bool,
    out: Path,
) -> None:
    """Latency of one query and one clip: torch as trained, folded, compiled, and ONNX Runtime.

    Example: dgl-bench encode --method dgl-linear --rounds 30 --threads 2
    """
    from benchmarks.encode import EncodeSettings, bench_encode
    from benchmarks.encode_report import make_report

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    settings = EncodeSettings(
        backbone=backbone,
        pretrained=pretrained,
        num_frames=num_frames,
        threads=threads,
        rounds=rounds,
        methods=METHODS if method == "both" else (method,),
        with_compile=with_compile,
    )
    report = make_report(bench_encode(settings))
    click.echo(report.to_markdown(), nl=False)
    for path in report.write(out):
        click.echo(f"Written: {path}", err=True)


@bench.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
def demo(folder: Path) -> None:
    """Show what demo.sh made in FOLDER: recall before and after tuning, parity, query latency.

    Example: dgl-bench demo demo
    """
    from benchmarks.demo import demo_table

    click.echo(demo_table(folder))
