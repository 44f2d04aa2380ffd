"""What the subcommands of dgl-bench share: options, lists in them, and how a report goes out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from benchmarks.report import Report

COMPILE_MODES = (
    "default",
    "max-autotune",
)  # benchmarks.encode_variants.COMPILED, without importing torch

backbone_option = click.option(
    "--backbone", default="ViT-B-32-quickgelu", show_default=True, help="As dgl-train's."
)
pretrained_option = click.option(
    "--pretrained", default="", help="Weight tag or file; random weights without."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Of the CPU."
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder for the JSON and markdown files.",
)


def read_sizes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Numbers above 0 with commas."""
    try:
        found = tuple(int(size) for size in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise click.BadParameter(f"got {text!r}, expected numbers above 0 with commas.")
    return found


def read_modes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Modes of torch.compile with commas, or none."""
    found = tuple(mode for mode in text.split(",") if mode)
    if unknown := set(found) - set(COMPILE_MODES):
        raise click.BadParameter(f"got {', '.join(unknown)}, known are {', '.join(COMPILE_MODES)}.")
    return found


def publish(report: "Report", out: Path) -> None:
    """Print a report and write it."""
    click.echo(report.to_markdown(), nl=False)
    for path in report.write(out):
        click.echo(f"Written: {path}", err=True)
