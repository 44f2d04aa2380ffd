"""dgl-export: from a checkpoint to a bundle."""

from dataclasses import replace
from pathlib import Path

import click

from dgl_runtime.bundle.manifest import FORMATS, PRECISIONS, Parity, Quality
from dgl_runtime.command import Command


@click.command(cls=Command)
@click.option(
    "--ckpt",
    type=click.Path(path_type=Path),
    help="A run folder of dgl-train, its .safetensors, or the research code's ckpt.best.pth.tar.",
)
@click.option(
    "--format", "file_format", type=click.Choice(FORMATS), default="onnx", show_default=True
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Below fp32, a quality gate decides.",
)
@click.option(
    "--calibrate",
    metavar="DIR|CSV|DATASET",
    help="Videos, or captioned clips, like those you will search: for int8 and fp8, and to judge any.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --calibrate: as dgl-train's.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--zero-shot", is_flag=True, help="Export the untuned backbone with mean pooling.")
@click.option(
    "--backbone",
    help="With --zero-shot: open_clip model name, folder in its format, a BLIP, or hf-hub:REPOSITORY.",
)
@click.option("--pretrained", default="", help="With --backbone: open_clip tag, or weight file.")
@click.option(
    "--num-frames", type=click.IntRange(1), help="Frames per clip; default as trained, or 12."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(3),
    help="Tokens per caption; default as trained, or all that the backbone reads.",
)
def export(
    ckpt: Path | None,
    file_format: str,
    precision: str,
    calibrate: str | None,
    data_root: Path | None,
    out: Path | None,
    zero_shot: bool,
    backbone: str | None,
    pretrained: str,
    num_frames: int | None,
    max_tokens: int | None,
) -> None:
    """Fold a tuned model into two encoders and write them as a bundle, behind gates.

    In float32 they equal the trained model to rounding. What a lower precision costs is measured on the half
    of --calibrate that set no scales; above the bounds nothing is written.

    \b
    Example:
      dgl-export --ckpt runs/lsmdc --format onnx --out bundle
      dgl-export --ckpt runs/lsmdc --format openvino --precision int8 --calibrate clips.csv --out small
    """  # noqa: D301 - click's own marker
    if out is None:
        raise click.UsageError("give the folder to make: --out BUNDLE.")
    for given, option, needed in (
        (calibrate and precision == "fp32", "--calibrate", "a --precision below fp32"),
        (data_root and not calibrate, "--data-root", "--calibrate"),
        (data_root and Path(calibrate or "").is_dir(), "--data-root", "--calibrate CSV or DATASET"),
        (pretrained and backbone is None, "--pretrained", "--backbone"),
        (pretrained and Path(backbone or "").is_dir(), "--pretrained", "--backbone NAME"),
    ):
        if given:
            raise click.UsageError(f"{option} goes with {needed} alone.")
    from dgl_export.bundle_writer import require_ready, write_bundle
    from dgl_export.calibration import read_calibration
    from dgl_export.formats import Target
    from dgl_export.request import tuned_request, untuned_request
    from dgl_runtime.encoder.rebuild import said_of_running
    from dgl_train.model.backbones.registry import has_own_weights

    if (ckpt is None) == (backbone is None):
        raise click.UsageError("give either --ckpt, or --zero-shot with --backbone.")
    if backbone is not None and not zero_shot:
        raise click.UsageError("--backbone alone has no prompts; add --zero-shot, or give --ckpt.")
    target = Target(file_format, precision)
    target.require_calibration(calibrate)
    require_ready(out, target)
    request = (
        tuned_request(ckpt, zero_shot=zero_shot)
        if ckpt is not None
        else untuned_request(backbone or "", pretrained)
    )
    if backbone is not None and not pretrained and not has_own_weights(backbone):
        click.echo(_said_of_random_weights(backbone), err=True)
    request = replace(
        request,
        num_frames=num_frames or request.num_frames,
        max_tokens=max_tokens or request.max_tokens,
    )
    calibration = None
    if calibrate is not None:
        calibration = read_calibration(calibrate, data_root, request.frames, request.tokenizer)
    manifest = write_bundle(request, out, target, calibration)
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    click.echo(
        f"{out}: {request.method} on {manifest.source.backbone}, {file_format}, {precision}, {size_mb:.0f} MB. "
        + (_parity(manifest.parity) if manifest.quality is None else _quality(manifest.quality))
    )
    click.echo(f"Licence of the weights: {manifest.source.licence}.")
    if target.library is not None:
        click.echo(said_of_running())


def _said_of_random_weights(name: str) -> str:
    from open_clip import list_pretrained_tags_by_model

    tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
    return f"Random weights: no --pretrained was given, so searches find nothing. Tags of {name}: {tags}."


def _parity(parity: Parity) -> str:
    return (
        f"Parity with the trained model: largest difference {parity.max_abs:.1e}, smallest cosine "
        f"{parity.min_cosine:.7f}, {parity.rank_agreement:.0%} of {parity.num_captions} rankings equal."
    )


def _quality(quality: Quality) -> str:
    recall = ""
    if quality.recall_at_1_before is not None:
        recall = f", R@1 {quality.recall_at_1_before:.1f} -> {quality.recall_at_1_after:.1f}"
    return (
        f"Against the trained model, on {quality.num_captions} captions and {quality.num_clips} clips "
        f"held out: smallest cosine {quality.min_cosine:.5f}, the same first clip for "
        f"{quality.top1_agreement:.1%}{recall}."
    )
