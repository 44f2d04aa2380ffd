"""dgl-index, dgl-search, dgl-verify: the runtime's commands."""

import json
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command, report_error
from dgl_runtime.engines.candidates import AUTO, DEVICE_CHOICES, ENGINE_CHOICES
from dgl_runtime.errors import BundleError

if TYPE_CHECKING:
    from dgl_runtime.retriever import Hit, Retriever


UNITS_S = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType[float]):
    """A duration such as 10, 10s, 1.5m or 500ms."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds as a float above 0."""
        match = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", str(value).strip())
        try:
            seconds = float(match[1]) * UNITS_S[match[2]] if match else 0.0
        except (ValueError, KeyError):
            seconds = 0.0
        if not 0 < seconds < math.inf:
            self.fail(
                f"{value!r} is not a duration above 0 such as 10s, 1.5m or 500ms.", param, ctx
            )
        return seconds


device_option = click.option(
    "--device",
    type=click.Choice(DEVICE_CHOICES),
    default="cpu",
    show_default=True,
    help="No fallback; auto is cuda where it works.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINE_CHOICES),
    default=AUTO,
    show_default=True,
    help="No fallback; auto is the fastest here.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 lets the engine choose."
)


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--gallery", required=True, type=click.Path(path_type=Path), help="Folder to fill.")
@click.option("--window", type=Seconds(), help="Cut videos into windows of this length.")
@click.option("--stride", type=Seconds(), help="From one window to the next; default the window.")
@device_option
@engine_option
@threads_option
def index(
    bundle: Path,
    videos: tuple[Path, ...],
    gallery: Path,
    window: float | None,
    stride: float | None,
    device: str,
    engine: str,
    threads: int,
) -> None:
    """Index videos (files, or folders of them) into a gallery that dgl-search searches.

    What the gallery holds already is skipped, so the same command goes on where a stopped run was. A
    broken video is reported and the others are indexed; the exit code is then 1.

    Example: dgl-index bundle ~/Videos --gallery gallery --window 10s --stride 5s
    """
    from dgl_runtime.retriever import Retriever

    if stride is not None and window is None:
        raise click.UsageError("--stride needs --window.")
    with Retriever(bundle, gallery, device=device, engine=engine, threads=threads) as retriever:
        report = retriever.add_videos(videos, window_s=window, stride_s=stride, show_progress=True)
        for broken in report.broken:
            report_error(broken.reason)
        click.echo(
            f"{report.num_videos} videos: {report.clips_added} clips added, "
            f"{report.clips_present} were there, {len(report.broken)} videos broken. "
            f"{click.format_filename(gallery)} holds {len(retriever.gallery)} clips."
        )
    sys.exit(1 if report.broken else 0)


@click.command(cls=Command)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.argument("queries", nargs=-1, required=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the gallery knows it.")
@click.option("--top", "top_k", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Also draw the hits into this PNG.")
@device_option
@engine_option
@threads_option
def search(
    gallery: Path,
    queries: tuple[str, ...],
    bundle: Path | None,
    top_k: int,
    as_json: bool,
    sheet: Path | None,
    device: str,
    engine: str,
    threads: int,
) -> None:
    """Find the moments of a gallery that fit each query.

    Example: dgl-search gallery "a dog jumps into the lake" --top 3 --sheet hits.png
    """
    from dgl_runtime.gallery import Gallery
    from dgl_runtime.retriever import Retriever

    if bundle is None:
        with Gallery.open(gallery) as opened:
            bundle = Path(opened.bundle_path)
        if not bundle.exists():
            raise BundleError(
                f"{bundle} is not a bundle any more, but gallery {gallery} was made with it. "
                "If the bundle was moved, name it with --bundle."
            )
    with Retriever(bundle, gallery, device=device, engine=engine, threads=threads) as retriever:
        found = [(query, retriever.search(query, top_k)) for query in queries]
        if as_json:
            rows = [
                {"query": query, "hits": [asdict(hit) for hit in hits]} for query, hits in found
            ]
            click.echo(json.dumps(rows, indent=2))
        else:
            for query, hits in found:
                _print_hits(query, hits)
        if sheet is not None:
            _draw(sheet, found, retriever)
            click.echo(f"Contact sheet: {sheet}", err=True)


def _print_hits(query: str, hits: "list[Hit]") -> None:
    click.echo(click.format_filename(query))  # as file names, a query need not be valid UTF-8
    for rank, hit in enumerate(hits, start=1):
        click.echo(
            f"{rank:4d}  {hit.similarity:.4f}  {timestamp(hit.start_s)} - {timestamp(hit.end_s)}  "
            f"{click.format_filename(hit.video)}"
        )
    if not hits:
        click.echo("      the gallery is empty")


def timestamp(seconds: float) -> str:
    """Seconds as h:mm:ss.s, or m:ss.s below an hour."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def _draw(sheet: Path, found: "list[tuple[str, list[Hit]]]", retriever: "Retriever") -> None:
    import numpy as np

    from dgl_runtime.contact_sheet import SheetHit, SheetRow, draw_contact_sheet
    from dgl_runtime.video import Span, read_clips

    def strip(rank: int, hit: "Hit") -> SheetHit:
        span = Span(hit.start_s, hit.end_s)
        (frames,) = read_clips(Path(hit.video), [span], retriever.num_frames, retriever.frame_size)
        when = f"{timestamp(hit.start_s)} - {timestamp(hit.end_s)}"
        title = f"{rank}. {Path(hit.video).name}  {when}  {hit.similarity:.3f}"
        return SheetHit(title, frames, np.array(hit.frame_weights))

    rows = [
        SheetRow(query, [strip(rank, hit) for rank, hit in enumerate(hits, start=1)])
        for query, hits in found
    ]
    draw_contact_sheet(sheet, rows)


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@device_option
@engine_option
@threads_option
def verify(bundle: Path, as_json: bool, device: str, engine: str, threads: int) -> None:
    """Check a bundle: every file against its hash, then its golden inputs on this machine.

    Example: dgl-verify bundle --device cuda --engine onnx
    """
    from dgl_runtime.retriever import Retriever
    from dgl_runtime.self_check import GRAPHS, check_graph

    retriever = Retriever(bundle, device=device, engine=engine, threads=threads)
    opened = retriever.bundle
    for name in opened.manifest.files:
        opened.path(name)
    _ = retriever.tokenizer  # it must also load
    rows = []
    for graph in GRAPHS:
        chosen = retriever.chosen(graph)
        difference = check_graph(chosen.engine, opened, graph)
        rows.append(
            {
                "graph": graph,
                "engine": chosen.candidate.engine,
                "device": chosen.candidate.device,
                "description": chosen.engine.description,
                "why": chosen.why,
                **asdict(difference),
            }
        )
    if as_json:
        found = {"bundle": str(bundle), "id": opened.id, "files": len(opened.manifest.files)}
        click.echo(json.dumps({**found, "graphs": rows}, indent=2))
        return
    click.echo(f"{click.format_filename(bundle)}: {len(opened.manifest.files)} files intact.")
    for row in rows:
        click.echo(
            f"{row['graph']} in {row['description']} ({row['why']}): differ by "
            f"{row['max_abs']:.1e}, cosine {row['min_cosine']:.6f}, from the exporting machine."
        )
