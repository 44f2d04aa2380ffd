"""dgl-eval: how well a run, a checkpoint or an exported bundle retrieves."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command
from dgl_runtime.errors import ConfigError
from dgl_train.options import choose_device, data_root_option, dataset_option, device_option

if TYPE_CHECKING:
    from dgl_train.evaluate import Encoders


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@dataset_option
@data_root_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
)
@click.option("--zero-shot", is_flag=True, help="The untuned backbone of this run instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@device_option
def evaluate(
    model: Path,
    dataset: str,
    data_root: Path | None,
    split: str,
    zero_shot: bool,
    as_json: bool,
    device: str,
) -> None:
    """Measure how well a run, a checkpoint or an exported bundle retrieves.

    \b
    Example:
      dgl-eval runs/shapes-dgl-transformer --dataset shapes --data-root shapes
      dgl-eval bundle --dataset clips.csv --split val --json
    """  # noqa: D301 - click's own marker
    from dgl_train.datasets import read_dataset, select_split
    from dgl_train.evaluate import evaluate as measure
    from dgl_train.evaluate import format_report

    clips = select_split(read_dataset(dataset, data_root), split, dataset)
    report = measure(_open_model(model, zero_shot, device), clips)
    what = f"{model}, backbone without prompts" if zero_shot else str(model)
    if as_json:
        facts = {"model": str(model), "zero_shot": zero_shot, "dataset": dataset, "split": split}
        click.echo(json.dumps({**facts, **dataclasses.asdict(report)}, indent=2))
    else:
        click.echo(f"{what} on {dataset} {split}\n{format_report(report)}")


def _open_model(path: Path, zero_shot: bool, device: str) -> "Encoders":
    from dgl_train.checkpoint import load_checkpoint
    from dgl_train.evaluate import bundle_encoders, torch_encoders
    from dgl_train.model import FrameMeanModel

    if (path / "manifest.json").is_file():
        if zero_shot:
            raise ConfigError(
                f"{path} is an exported bundle, which has no backbone of its own. "
                "Give --zero-shot with the run it was exported from."
            )
        return bundle_encoders(path, device=choose_device(device).type)
    where = choose_device(device)
    tuned = load_checkpoint(path)
    return torch_encoders(
        (FrameMeanModel(tuned.model.backbone) if zero_shot else tuned.model).to(where),
        num_frames=tuned.settings.num_frames,
        max_words=tuned.settings.max_words,
        device=where,
    )
