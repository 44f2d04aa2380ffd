"""dgl-bundle: what is done with a bundle that is there."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command
from dgl_runtime.commands.options import GalleryPlace, threads_option
from dgl_runtime.engines.opening import DEVICES

if TYPE_CHECKING:
    from dgl_runtime.gallery.address import Place


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


@bundle.group()
def gallery() -> None:
    """Work on galleries of a bundle, in folders or in an engine."""


@gallery.command(cls=Command)
@click.argument("source", metavar="FROM", type=GalleryPlace())
@click.argument("target", metavar="TO", type=GalleryPlace())
def copy(source: "Place", target: "Place") -> None:
    """Copy a gallery: a folder, or one in PostgreSQL, into another.

    What TO holds already is left, so the same command resumes. In the end both are compared: their
    counts, and the hits of sample searches.

    Example: dgl-bundle gallery copy gallery 'postgresql://postgres@localhost/postgres?gallery=films'
    """
    from dgl_runtime.gallery.address import open_gallery, open_or_create
    from dgl_runtime.gallery.copying import copy_gallery

    if source == target:
        raise click.UsageError(f"FROM and TO are the same gallery, {source}.")
    with open_gallery(source) as old:
        facts = old.facts
        made = open_or_create(
            target,
            bundle_id=facts.bundle_id,
            bundle_path=facts.bundle_path,
            embed_dim=facts.embed_dim,
            num_frames=facts.num_frames,
        )
        with made as new:
            copied = copy_gallery(old, new, show_progress=True)
    click.echo(
        f"{copied.clips_added} clips copied; {target} holds {copied.num_clips} clips of {copied.num_videos} "
        f"videos, and gives {copied.agreement:.1%} of the hits of {source}."
    )
