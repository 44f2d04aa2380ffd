"""dgl-bench encode and operators: how fast the encoders are in every engine, and what takes the time."""

from pathlib import Path

import click

from benchmarks.options import (
    COMPILE_MODES,
    backbone_option,
    out_option,
    pretrained_option,
    publish,
    read_modes,
    read_sizes,
    threads_option,
)
from dgl_runtime.command import Command, fail
from dgl_runtime.engines.opening import DEVICES

METHODS = (
    "dgl-linear",
    "dgl-transformer",
)  # dgl_train.model.checkpoint.METHODS, without importing torch

frames_option = click.option("--num-frames", type=click.IntRange(1), default=12, show_default=True)
rounds_option = click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
method_option = click.option(
    "--method", type=click.Choice([*METHODS, "both"]), default="both", show_default=True
)


@click.command(cls=Command)
@backbone_option
@pretrained_option
@frames_option
@threads_option
@rounds_option
@method_option
@click.option(
    "--compile",
    "modes",
    callback=read_modes,
    default=",".join(COMPILE_MODES),
    show_default=True,
    help="Modes of torch.compile, with commas; empty for none.",
)
@click.option(
    "--batches",
    callback=read_sizes,
    default="1",
    show_default=True,
    help="Batch sizes, with commas; 1 is measured in any case.",
)
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@out_option
def encode(
    backbone: str,
    pretrained: str,
    num_frames: int,
    threads: int,
    rounds: int,
    method: str,
    modes: tuple[str, ...],
    batches: tuple[int, ...],
    device: str,
    out: Path,
) -> None:
    """Queries and clips: torch as trained, folded, compiled, and every engine and precision.

    Example: dgl-bench encode --method dgl-linear --rounds 30 --threads 2 --batches 1,4,16
    """
    from benchmarks.encode import EncodeSettings, bench_encode
    from benchmarks.encode_report import make_report, write_plots

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    settings = EncodeSettings(
        backbone=backbone,
        pretrained=pretrained,
        num_frames=num_frames,
        threads=threads,
        rounds=rounds,
        methods=_methods(method),
        modes=modes,
        batches=tuple(sorted({1, *batches})),
        device=device,
    )
    result = bench_encode(settings)
    publish(make_report(result, write_plots(result, out)), out)
    if wrong := result.wrong:
        fail("; ".join(wrong))


@click.command(cls=Command)
@backbone_option
@pretrained_option
@frames_option
@threads_option
@rounds_option
@method_option
@out_option
def operators(
    backbone: str,
    pretrained: str,
    num_frames: int,
    threads: int,
    rounds: int,
    method: str,
    out: Path,
) -> None:
    """Which operators a query and a clip spend their time on, in every engine of the CPU.

    Example: dgl-bench operators --method dgl-linear
    """
    from benchmarks.encode import EncodeSettings
    from benchmarks.operators import bench_operators
    from benchmarks.operators_report import make_report

    out.mkdir(parents=True, exist_ok=True)
    settings = EncodeSettings(
        backbone=backbone,
        pretrained=pretrained,
        num_frames=num_frames,
        threads=threads,
        rounds=rounds,
        methods=_methods(method),
        modes=(),
        batches=(1,),
        device="cpu",
    )
    publish(make_report(bench_operators(settings)), out)


def _methods(method: str) -> tuple[str, ...]:
    return METHODS if method == "both" else (method,)
