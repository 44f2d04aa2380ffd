"""dgl-bundle: what is done with a bundle that is there."""

from pathlib import Path

import click

from dgl_runtime.command import Command
from dgl_runtime.commands.options import threads_option
from dgl_runtime.engines.opening import DEVICES


@click.group()
def bundle() -> None:
    """Work on a bundle that dgl-export wrote."""


@bundle.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
def rebuild(bundle: Path) -> None:
    """Build the engines of a trt or trt-rtx bundle for this machine, from its own ONNX files.

    Earlier ones are replaced only by engines that give the bundle's golden results.

    Example: dgl-bundle rebuild bundle
    """
    from dgl_runtime.encoder import rebuild as building

    for path in building.rebuild(bundle, building.library_of(bundle)):
        click.echo(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    click.echo(building.said_of_running())


@bundle.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Where the server runs it; cuda: on every GPU, as TensorRT where the bundle has engines.",
)
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of each graph, which run at the same time; for cuda on each GPU.",
)
@threads_option
def triton(bundle: Path, out: Path, device: str, instances: int, threads: int) -> None:
    """Write a bundle's graphs into OUT, a model repository of a Triton Inference Server.

    A server that runs them takes part as --engine triton:HOST:PORT. OUT may hold other bundles' graphs.

    Example: dgl-bundle triton bundle repository
    """
    from dgl_runtime.bundle.folder import Bundle
    from dgl_runtime.encoder.triton_config import Placed
    from dgl_runtime.encoder.triton_repository import write_repository

    for model in write_repository(Bundle(bundle), out, Placed(device, instances, threads)):
        click.echo(f"{click.format_filename(model.folder)}: {model.runs_in}")
