"""The commands dgl-train, dgl-eval and dgl-shapes; torch is imported when one runs."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import INTERRUPTED, Command
from dgl_runtime.errors import ConfigError, EngineError

if TYPE_CHECKING:
    import torch

    from dgl_train.config import Recipe
    from dgl_train.evaluate import Encoders

STILLS = "stills"  # a recipe's name for the backbone that dgl-shapes makes

_dataset = click.option("--dataset", required=True, help="shapes, or a .csv or .jsonl file.")
_data_root = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Folder of the data set, or of its videos."
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)


@click.command(cls=Command)
@_dataset
@_data_root
@click.option("--method", metavar="dgl-linear|dgl-transformer", help="In place of the recipe's.")
@click.option("--recipe", help="Name or TOML file; else the data set's own, or default.")
@click.option("--backbone", help="Model name of open_clip, or a folder in its format.")
@click.option("--pretrained", help="Weight tag of open_clip, or a weight file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder  [runs/DATASET-METHOD]")
@click.option("--resume", is_flag=True, help="Go on with the run in the run folder.")
@_device
def train(
    dataset: str,
    data_root: Path | None,
    method: str | None,
    recipe: str | None,
    backbone: str | None,
    pretrained: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    device: str,
) -> None:
    """Learn DGL prompts for a frozen CLIP on captioned clips.

    Validates on the val split, or on a part held out of train, after each epoch; the best epoch is
    kept. Ctrl-C saves the run, --resume goes on with it exactly.

    \b
    Example:
      dgl-train --dataset shapes --data-root shapes
      dgl-train --dataset clips.csv --method dgl-linear --set batch_size=64
    """  # noqa: D301 - click's own marker
    from dgl_train.config import read_recipe, recipe_names

    named = {"method": method, "backbone": backbone, "pretrained": pretrained}
    if backbone and Path(backbone).is_dir() and pretrained is None:
        named["pretrained"] = ""  # a folder has its weights inside
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None]
    chosen = read_recipe(
        recipe or (dataset if dataset in recipe_names() else "default"), [*overrides, *settings]
    )

    from dgl_train.backbone import BackboneSource, load_backbone
    from dgl_train.datasets import read_dataset, training_parts
    from dgl_train.fit import fit

    where = _choose_device(device)
    clips_train, clips_val = training_parts(
        read_dataset(dataset, data_root),
        dataset,
        fraction=chosen.validation_fraction,
        seed=chosen.training_seed,
    )
    chosen = _locate_backbone(chosen, data_root)
    result = fit(
        chosen,
        clips_train,
        clips_val,
        out or Path("runs") / f"{Path(dataset).stem}-{chosen.method}",
        backbone=load_backbone(BackboneSource(chosen.backbone, chosen.pretrained)),
        device=where,
        resume=resume,
    )
    if result.step < result.total_steps:
        click.echo(
            f"Stopped and saved after step {result.step} of {result.total_steps}. "
            "Go on with the same command and --resume.",
            err=True,
        )
        sys.exit(INTERRUPTED)
    click.echo(
        f"{result.run}: best epoch {result.best_epoch} of {chosen.epochs}, "
        f"validation R@1 {result.best_recall:.1f} over {len(clips_val)} captions"
    )


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@_dataset
@_data_root
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
)
@click.option("--zero-shot", is_flag=True, help="The untuned backbone of this run instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_device
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


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--clips-only", is_flag=True, help="Do not pretrain the backbone.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
def shapes(folder: Path, clips_only: bool, seed: int) -> None:
    """Make the data set of moving shapes in FOLDER and a tiny backbone in FOLDER/backbone.

    The backbone has seen stills of the shapes only. Both are made once, in 2 to 3 minutes on two
    cores.

    \b
    Example:
      dgl-shapes shapes
    """  # noqa: D301 - click's own marker
    from dgl_train.synthetic import make_shapes, read_made_from

    make_shapes(folder, seed=seed)
    click.echo(f"{folder}: {read_made_from(folder)['report']['clips']} clips")
    if not clips_only:
        from dgl_train.stills_backbone import make_backbone

        made = make_backbone(folder / "backbone", seed=seed)
        click.echo(f"{made}: recall on new stills {read_made_from(made)['report']}")


def _choose_device(name: str) -> "torch.device":
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise EngineError(
            "device 'cuda' is asked for, but torch sees no CUDA GPU. Use --device cpu, or "
            "install a torch with CUDA and check nvidia-smi."
        )
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
        click.echo(f"Computing on {name}.", err=True)
    return torch.device(name)


def _locate_backbone(recipe: "Recipe", data_root: Path | None) -> "Recipe":
    """The recipe with its backbone as any later process finds it, from whatever folder."""
    from dgl_train.datasets import SHAPES_FOLDER
    from dgl_train.stills_backbone import make_backbone

    backbone = Path(recipe.backbone)
    if recipe.backbone == STILLS:
        backbone = (data_root or SHAPES_FOLDER) / "backbone"
        if not backbone.exists():
            make_backbone(backbone)
    if not backbone.is_dir() and not recipe.pretrained:
        raise ConfigError(
            f"backbone {recipe.backbone!r} has no weights: it is no folder and pretrained is empty. "
            "Give --pretrained, such as openai, or a folder with weights."
        )
    weights = Path(recipe.pretrained)
    return dataclasses.replace(
        recipe,
        backbone=str(backbone.resolve()) if backbone.is_dir() else recipe.backbone,
        pretrained=str(weights.resolve()) if weights.is_file() else recipe.pretrained,
    )


def _open_model(path: Path, zero_shot: bool, device: str) -> "Encoders":
    from dgl_train.checkpoint import load_checkpoint
    from dgl_train.evaluate import bundle_encoders, torch_encoders
    from dgl_train.model import ZeroShotModel

    if (path / "manifest.json").is_file():
        if zero_shot:
            raise ConfigError(
                f"{path} is an exported bundle, which has no backbone of its own. "
                "Give --zero-shot with the run it was exported from."
            )
        return bundle_encoders(path, device=_choose_device(device).type)
    where = _choose_device(device)
    tuned = load_checkpoint(path)
    return torch_encoders(
        (ZeroShotModel(tuned.model.backbone) if zero_shot else tuned.model).to(where),
        num_frames=tuned.settings.num_frames,
        max_words=tuned.settings.max_words,
        device=where,
    )
