"""Command-line options that dgl-train, dgl-eval and dgl-data share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.errors import EngineError

if TYPE_CHECKING:
    import torch

dataset_option = click.option(
    "--dataset",
    required=True,
    help="msrvtt, msrvtt-7k, lsmdc, activitynet, didemo, msvd, vatex, shapes, or a .csv or .jsonl file.",
)
data_root_option = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Folder of the data set, or of its videos."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto: a GPU if there is one.",
)


def choose_device(name: str) -> "torch.device":
    """The device of --device.

    Raises:
        EngineError: CUDA is asked for and missing.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise EngineError(
            "device 'cuda' was requested, but torch sees no CUDA GPU. Use --device cpu, or "
            "install a torch with CUDA and check nvidia-smi."
        )
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
        click.echo(f"Computing on {name}.", err=True)
    return torch.device(name)
