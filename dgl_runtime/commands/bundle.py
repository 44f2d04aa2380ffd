"""dgl-bundle: what is done with a bundle that is there."""

from pathlib import Path

import click

from dgl_runtime.command import Command


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
