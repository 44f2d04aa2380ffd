"""dgl-eval: how well runs, checkpoints and exported bundles retrieve."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgl_runtime.command import Command
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
    from dgl_train.evaluation.evaluate import Embeddings
    from dgl_train.evaluation.models import OpenedModel
    from dgl_train.evaluation.post_process import Processed
    from dgl_train.evaluation.report_page import ModelPages
    from dgl_train.recipes.recipe import Recipe

_FEW_CLIPS, _MOST_WORKERS = 512, 8


@dataclass(frozen=True)
class Request:
    """What dgl-eval was asked for; see the options of the command."""

    dataset: str
    data_root: Path | None
    split: str
    zero_shot: bool
    group_captions: bool
    post_process: bool

    def settings(self) -> dict[str, Any]:
        """All of it as JSON values."""
        root = None if self.data_root is None else str(self.data_root)
        return {**vars(self), "data_root": root, "ties": "count against the model"}


@click.command(cls=Command)
@click.argument(
    "models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@dataset_option
@data_root_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
)
@click.option("--zero-shot", is_flag=True, help="Measure the untuned backbone of this run instead.")
@click.option(
    "--group-captions/--no-group-captions",
    default=None,
    help="Video to text: each clip competes with its best caption. Default: as the data set's papers do.",
)
@click.option("--post-process", is_flag=True, help="Also report dual softmax and QB-Norm, apart.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write report.json and report.html here."
)
@click.option(
    "--attention",
    type=click.Path(path_type=Path),
    help="Instead, draw here what global prompt 0 attends to.",
)
@click.option(
    "--count", type=click.IntRange(1), default=8, show_default=True, help="Clips to draw."
)
@device_option
def evaluate(
    models: tuple[Path, ...],
    dataset: str,
    data_root: Path | None,
    split: str,
    zero_shot: bool,
    group_captions: bool | None,
    post_process: bool,
    as_json: bool,
    out: Path | None,
    attention: Path | None,
    count: int,
    device: str,
) -> None:
    """Measure how well runs, checkpoints or exported bundles retrieve.

    Several models, or a folder of runs seed0, seed1, ..., also give mean and spread.

    \b
    Example:
      dgl-eval runs/shapes-dgl-transformer --dataset shapes --data-root shapes
      dgl-eval bundle --dataset clips.csv --split val --json
      dgl-eval runs/lsmdc --dataset lsmdc --data-root lsmdc --post-process --out report
      dgl-eval runs/lsmdc --dataset lsmdc --data-root lsmdc --attention pictures
    """  # noqa: D301 - click's own marker
    if attention and (post_process or as_json or out or zero_shot):
        raise click.UsageError(
            "--attention only draws; leave out --post-process, --json, --out and --zero-shot."
        )
    if post_process and split != "test":
        raise click.UsageError(
            f"--post-process needs --split test, not {split}: it learns from the other splits."
        )
    from dgl_train.data.datasets import read_dataset, select_split, warn_of_shared_videos
    from dgl_train.data.published import several_captions
    from dgl_train.data.verify import verify_videos
    from dgl_train.evaluation.models import expand_runs

    grouped = several_captions(dataset) if group_captions is None else group_captions
    request = Request(dataset, data_root, split, zero_shot, grouped, post_process)
    clips = read_dataset(dataset, data_root)
    verified = verify_videos(select_split(clips, split, dataset))
    chosen = verified.clips
    if verified.faults:
        click.echo(
            f"{len(verified.faults)} videos could not be read and are left out: figures are not "
            "comparable with those on the whole set. dgl-data check names them.",
            err=True,
        )
    where = choose_device(device)
    paths = expand_runs(models)
    if attention:
        _draw_attention(attention, paths, chosen, count, where)
        return
    told: set[str] = set()
    pages = [
        _measure(path, request, clips, chosen, where, told, draw=out is not None) for path in paths
    ]
    click.echo(_as_json(request, pages) if as_json else _as_text(request, pages))
    if warning := warn_of_shared_videos(clips, split):
        click.echo(warning, err=True)
    if out is not None:
        from dgl_train.evaluation.report_page import write_report

        write_report(out, {**request.settings(), "device": where.type}, pages)
        click.echo(f"Report: {out / 'report.html'} and report.json", err=True)


def _measure(
    path: Path,
    request: Request,
    clips: "Sequence[CaptionedClip]",
    chosen: "Sequence[CaptionedClip]",
    device: "torch.device",
    told: set[str],
    *,
    draw: bool,
) -> "ModelPages":
    from dgl_train.data.cut_captions import warn_of_cut_captions
    from dgl_train.evaluation.evaluate import embed_dataset, report
    from dgl_train.evaluation.models import open_model
    from dgl_train.evaluation.report_page import ModelPages
    from dgl_train.evaluation.report_table import Evaluation
    from dgl_train.evaluation.worst_queries import draw_worst, rank_clips, rank_queries

    model = open_model(path, zero_shot=request.zero_shot, device=device)
    captions = [clip.caption for clip in chosen]
    encoders = model.encoders
    warning = warn_of_cut_captions(captions, encoders.tokenizer)
    if warning and warning not in told:  # of several models, once
        told.add(warning)
        click.echo(warning, err=True)
    found = embed_dataset(encoders, chosen, num_workers=_workers(len(chosen)))
    evaluation = Evaluation(
        f"{path}, backbone without prompts" if request.zero_shot else str(path),
        model.selection,
        report(found, group_captions=request.group_captions),
        _post_process(model, request, clips, found) if request.post_process else (),
    )
    if not draw:
        return ModelPages(evaluation, (), (), ())
    queries = rank_queries(chosen, found)
    return ModelPages(
        evaluation,
        queries,
        rank_clips(chosen, found, group_captions=request.group_captions),
        draw_worst(model.encoders, chosen, found, queries),
    )


def _workers(clips: int) -> int:
    """Processes that decode: none for what is read before they have started."""
    return min(os.cpu_count() or 1, _MOST_WORKERS) if clips >= _FEW_CLIPS else 0


def _post_process(
    model: "OpenedModel",
    request: Request,
    clips: "Sequence[CaptionedClip]",
    found: "Embeddings",
) -> "list[Processed]":
    from dgl_train.data.datasets import training_parts
    from dgl_train.data.verify import verify_videos
    from dgl_train.evaluation.post_process import calibrate, post_process

    recipe = _recipe_of_held_out_part(model.path, clips)
    # The bank's captions need no videos: broken ones matter only where clips are held out.
    looked_at = "val" if any(clip.split == "val" for clip in clips) else "train"
    usable = set(verify_videos([clip for clip in clips if clip.split == looked_at]).clips)
    clips = [clip for clip in clips if clip.split != looked_at or clip in usable]
    train, held_out = training_parts(
        clips,
        request.dataset,
        fraction=recipe.validation_fraction,
        seed=recipe.training_seed,
    )
    calibration = calibrate(model.encoders, train, held_out)
    return post_process(found, calibration, group_captions=request.group_captions)


def _recipe_of_held_out_part(model: Path, clips: "Sequence[CaptionedClip]") -> "Recipe":
    """What says which clips a model has not seen; with a val split any recipe does.

    Raises:
        ConfigError: Nobody knows.
    """
    from dgl_train.evaluation.models import recipe_file
    from dgl_train.recipes.recipe import read_recipe

    file = recipe_file(model)
    recipe = read_recipe(file or "default")
    has_val = any(clip.split == "val" for clip in clips)
    if not has_val and (file is None or recipe.select_on_test):
        why = "it was trained on all of train" if file else "no recipe.toml lies beside it"
        raise ConfigError(
            f"--post-process needs clips that {model} was not trained on to choose a temperature by, "
            f"and none are known: {why}, and the data set has no val split. Give a run folder that held "
            "out a part of train, or add val rows."
        )
    return recipe


def _as_text(request: Request, pages: "Sequence[ModelPages]") -> str:
    from dgl_train.evaluation.report_table import make_tables, selection_lines

    evaluations = [page.evaluation for page in pages]
    what = evaluations[0].model if len(evaluations) == 1 else f"{len(evaluations)} models"
    lines = [*selection_lines(evaluations), f"{what} on {request.dataset} {request.split}"]
    return "\n".join([*lines, *(f"\n{table}" for table in make_tables(evaluations))])


def _as_json(request: Request, pages: "Sequence[ModelPages]") -> str:
    """One model: its figures beside the settings. Several: a list of them, and the summary."""
    from dgl_train.evaluation.report_table import summarize_runs

    evaluations = [page.evaluation for page in pages]
    documents = [evaluation.document() for evaluation in evaluations]
    found: dict[str, Any] = documents[0]
    if len(documents) > 1:
        found = {"models": documents, "summary": summarize_runs(evaluations)}
    return json.dumps({**request.settings(), **found}, indent=2)


def _draw_attention(
    out: Path,
    paths: Sequence[Path],
    clips: "Sequence[CaptionedClip]",
    count: int,
    device: "torch.device",
) -> None:
    from dgl_train.evaluation.attention import draw_attention
    from dgl_train.evaluation.evaluate import distinct_clips
    from dgl_train.evaluation.models import open_model

    if len(paths) != 1:
        raise ConfigError(f"--attention got {len(paths)} models, expected one. Name one run.")
    tuned = open_model(paths[0], zero_shot=False, device=device).tuned
    if tuned is None:
        raise ConfigError(
            f"{paths[0]} is an exported bundle, whose attention is not kept. "
            "Give --attention with the run it was exported from."
        )
    drawn = distinct_clips(clips)[:count]
    draw_attention(out, tuned.model, drawn, num_frames=tuned.settings.num_frames, device=device)
    click.echo(f"{out}: {len(drawn)} pictures and attention.json")
