"""The commands dgl-train and dgl-shapes; torch is imported when one runs."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import INTERRUPTED, Command, report_note
from dgl_runtime.errors import ConfigError
from dgl_train.commands.options import (
    choose_device,
    data_root_option,
    dataset_option,
    device_option,
)

if TYPE_CHECKING:
    import torch

    from dgl_train.data.datasets import CaptionedClip
    from dgl_train.data.verify import Verified
    from dgl_train.model.backbones.backbone import Backbone
    from dgl_train.recipes.recipe import Recipe

    Parts = tuple[list[CaptionedClip], list[CaptionedClip]]

STILLS = "stills"  # a recipe's name for the backbone that dgl-shapes makes


@click.command(cls=Command)
@dataset_option
@data_root_option
@click.option("--method", metavar="NAME", help="dgl-linear, dgl-transformer, or a baseline.")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="NAME|FILE",
    help="Overrides the data set's own; repeatable.",
)
@click.option(
    "--backbone",
    help="Model name of open_clip, a folder in its format, a BLIP, or hf-hub:ORG/NAME.",
)
@click.option("--pretrained", help="Weight tag of open_clip, or a weight file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder  [runs/DATASET-METHOD]")
@click.option("--resume", is_flag=True, help="Resume the run in the run folder.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of runs, with seeds from training_seed on, into OUT/seedN.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be trained, and train nothing.")
@device_option
def train(
    dataset: str,
    data_root: Path | None,
    method: str | None,
    recipes: tuple[str, ...],
    backbone: str | None,
    pretrained: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    seeds: int,
    dry_run: bool,
    device: str,
) -> None:
    """Learn DGL prompts for a frozen CLIP on captioned clips.

    Validates on the val split, or on a part held out of train, after each epoch; the best epoch is
    kept. Ctrl-C saves the run, and --resume continues it exactly. On several GPUs, start it as
    torchrun --nproc-per-node N -m dgl_train ...

    \b
    Example:
      dgl-train --dataset shapes --data-root shapes
      dgl-train --dataset msrvtt --data-root DIR --recipe gpu-24gb --dry-run
      dgl-train --dataset clips.csv --method dgl-linear --set batch_size=64
    """  # noqa: D301 - click's own marker
    from dgl_train.model.backbones.registry import has_own_weights
    from dgl_train.recipes.recipe import read_recipe, recipe_names
    from dgl_train.training.processes import Processes

    named = {"method": method, "backbone": backbone, "pretrained": pretrained}
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None]
    overrides += settings
    chosen = dict(setting.partition("=")[::2] for setting in overrides)
    if has_own_weights(chosen.get("backbone", "")) and "pretrained" not in chosen:
        overrides.append("pretrained=")
    own = [dataset] if dataset in recipe_names() else []
    recipe = read_recipe([*own, *recipes] or "default", overrides)
    where = choose_device(device)
    processes = Processes(where.type)
    with processes.main_first():  # what it makes, downloads and verifies, the others find
        verified = _read_verified(dataset, data_root, recipe, tells=processes.is_main)
        recipe = _locate_backbone(recipe, data_root)
        if processes.count > 1:
            _load_backbone(recipe)
    out = out or Path("runs") / f"{Path(dataset).stem}-{recipe.method}"
    if dry_run:
        if processes.is_main:
            plan = _divide(verified.clips, dataset, recipe)
            _show_plan(recipe, plan, verified, processes=processes.count)
        return
    if seeds > 1 and (out / "recipe.toml").exists():
        raise ConfigError(
            f"{out} holds a run of its own; the runs of several seeds would be hidden beside it. "
            "Give another folder with --out."
        )
    for seed in range(recipe.training_seed, recipe.training_seed + seeds):
        one = dataclasses.replace(recipe, training_seed=seed)
        folder = out / f"seed{seed}" if seeds > 1 else out
        # Of several runs, the later ones may not have begun when all were stopped.
        goes_on = resume and (seeds == 1 or (folder / "resume.pt").exists())
        parts = _divide(verified.clips, dataset, one)
        tells = processes.is_main and seed == recipe.training_seed
        _train_once(one, parts, folder, verified, device=where, resume=goes_on, tells=tells)


def _read_verified(
    dataset: str, data_root: Path | None, recipe: "Recipe", *, tells: bool
) -> "Verified":
    """The clips of the splits that training looks at, and the videos that are left out."""
    from dgl_train.data.datasets import read_dataset, select_split, warn_of_shared_videos
    from dgl_train.data.verify import verify_videos

    clips = read_dataset(dataset, data_root, tell=report_note if tells else _say_nothing)
    wanted = select_split(clips, "train", dataset)
    if recipe.select_on_test:
        wanted += select_split(clips, "test", dataset)
    else:
        wanted += [clip for clip in clips if clip.split == "val"]
    verified = verify_videos(wanted)
    if tells and verified.faults:
        click.echo(
            f"{len(verified.faults)} videos could not be read and are left out; dgl-data check and "
            "dropped.csv in the run folder name them.",
            err=True,
        )
    if tells and verified.remarks:
        click.echo(
            f"Note: {len(verified.remarks)} videos are odd and are used as they are; dgl-data check "
            "names them.",
            err=True,
        )
    if tells and (warning := warn_of_shared_videos(clips, "train")):
        click.echo(warning, err=True)
    return verified


def _load_backbone(recipe: "Recipe") -> "Backbone":
    from dgl_train.model.backbones.backbone import BackboneSource
    from dgl_train.model.backbones.registry import load_backbone

    return load_backbone(BackboneSource(recipe.backbone, recipe.pretrained))


def _warn_of_cut_captions(verified: "Verified", backbone: "Backbone", recipe: "Recipe") -> None:
    from dgl_train.data.cut_captions import warn_of_cut_captions

    captions = [clip.caption for clip in verified.clips]
    inputs = backbone.inputs_of(recipe.num_frames, recipe.max_tokens)
    tokenizer = backbone.facts.tokenizer.fed_as(inputs.texts)
    if warning := warn_of_cut_captions(captions, tokenizer):
        click.echo(warning, err=True)


def _say_nothing(_: str) -> None:
    """The first of several processes speaks for all."""


def _divide(clips: "list[CaptionedClip]", dataset: str, recipe: "Recipe") -> "Parts":
    """Clips to train on, and clips to choose the epoch by."""
    from dgl_train.data.datasets import select_split, training_parts

    if recipe.select_on_test:
        return select_split(clips, "train", dataset), select_split(clips, "test", dataset)
    return training_parts(
        clips, dataset, fraction=recipe.validation_fraction, seed=recipe.training_seed
    )


def _show_plan(recipe: "Recipe", parts: "Parts", verified: "Verified", *, processes: int) -> None:
    from dgl_train.training.plan import describe_plan

    backbone = _load_backbone(recipe)
    _warn_of_cut_captions(verified, backbone, recipe)
    train, val = parts
    click.echo(
        describe_plan(recipe, backbone, clips_train=train, clips_val=val, processes=processes)
    )


def _train_once(
    recipe: "Recipe",
    parts: "Parts",
    out: Path,
    verified: "Verified",
    *,
    device: "torch.device",
    resume: bool,
    tells: bool,
) -> None:
    from dgl_train.training.fit import fit

    backbone = _load_backbone(recipe)
    if tells:
        _warn_of_cut_captions(verified, backbone, recipe)
    result = fit(
        recipe,
        *parts,
        out,
        backbone=backbone,
        device=device,
        dropped=verified.faults,
        resume=resume,
    )
    if result.step < result.total_steps:
        click.echo(
            f"Stopped and saved after step {result.step} of {result.total_steps}. "
            "Resume with the same command and --resume.",
            err=True,
        )
        sys.exit(INTERRUPTED)
    chosen_on = "TEST" if recipe.select_on_test else "validation"
    click.echo(
        f"{result.run}: best epoch {result.best_epoch} of {recipe.epochs}, "
        f"{chosen_on} R@1 {result.best_recall:.1f} over {len(parts[1])} captions"
    )


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
    from dgl_train.shapes.clips import make_shapes, read_made_from

    make_shapes(folder, seed=seed)
    click.echo(f"{folder}: {read_made_from(folder)['report']['clips']} clips")
    if not clips_only:
        from dgl_train.shapes.backbone import make_backbone

        made = make_backbone(folder / "backbone", seed=seed)
        click.echo(f"{made}: recall on new stills {read_made_from(made)['report']}")


def _locate_backbone(recipe: "Recipe", data_root: Path | None) -> "Recipe":
    """The recipe with its backbone as any later process finds it, from whatever folder."""
    from dgl_train.data.datasets import SHAPES_FOLDER
    from dgl_train.model.backbones.registry import has_own_weights
    from dgl_train.shapes.backbone import make_backbone

    backbone = Path(recipe.backbone)
    if recipe.backbone == STILLS:
        backbone = (data_root or SHAPES_FOLDER) / "backbone"
        if not backbone.exists():
            make_backbone(backbone)
    if not has_own_weights(str(backbone)) and not recipe.pretrained:
        raise ConfigError(
            f"backbone {recipe.backbone!r} has no weights: it is no folder and pretrained is empty. "
            "Give --pretrained, such as openai, or a folder with weights."
        )
    if backbone.exists() and recipe.pretrained:
        raise ConfigError(
            f"backbone {recipe.backbone!r} has weights of its own, and pretrained names others, "
            f"{recipe.pretrained!r}. Give --pretrained '', or a model's name."
        )
    weights = Path(recipe.pretrained)
    return dataclasses.replace(  # links stay: what lies beside one may belong to it
        recipe,
        backbone=str(backbone.absolute()) if backbone.exists() else recipe.backbone,
        pretrained=str(weights.absolute()) if weights.is_file() else recipe.pretrained,
    )
