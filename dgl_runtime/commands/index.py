"""dgl-index: fill a gallery with the clips of videos, once or for as long as a folder grows."""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command, report_error, report_note
from dgl_runtime.commands.options import (
    GalleryPlace,
    Seconds,
    device_option,
    engine_option,
    threads_option,
)
from dgl_runtime.errors import DglError
from dgl_runtime.names import find_path

if TYPE_CHECKING:
    from dgl_runtime.gallery.address import Place
    from dgl_runtime.indexing.index import IndexReport


def _patterns(_: click.Context, __: click.Parameter, patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if not pattern.strip("/. "):
            raise click.BadParameter(
                f"{pattern!r} names nothing; expected one such as *.lrv or raw/."
            )
    return patterns


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
# One that may not be read is reported beside the others, which are indexed.
@click.argument("videos", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path))
@click.option(
    "--gallery",
    required=True,
    type=GalleryPlace(),
    help="Folder, or postgresql://USER@HOST/DATABASE?gallery=NAME; made if it is new.",
)
@click.option("--window", type=Seconds(), help="Cut videos into windows of this length.")
@click.option(
    "--stride",
    type=Seconds(),
    help="From the start of one window to that of the next; default: --window.",
)
@click.option("--shots", is_flag=True, help="Cut at shots; with --window, cut long shots too.")
@click.option(
    "--jobs", type=click.IntRange(0), default=0, help="Processes that decode; 0: cores - 1."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Clips encoded together; for a GPU 32 or more.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    callback=_patterns,
    help="Leave out files and folders by name (*.lrv), path (raw/*) or as folders (proxies/); repeatable.",
)
@click.option(
    "--prune", is_flag=True, help="Remove videos that are missing below the folders, or excluded."
)
@click.option("--watch", is_flag=True, help="Keep indexing as the folders change, until Ctrl-C.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="A csv or jsonl with a column 'video' and columns that dgl-search --where can filter by.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write the videos that failed, and why, into this csv.",
)
@click.option(
    "--ray",
    metavar="auto|local|HOST:PORT",
    help="Read and encode on the machines of a Ray cluster; all must see bundle and videos.",
)
@click.option(
    "--encoders",
    type=click.IntRange(0),
    default=0,
    help="With --ray: encoders on all machines; 0: one a GPU, or one a machine.",
)
@device_option
@engine_option
@threads_option
def index(
    bundle: Path,
    videos: tuple[Path, ...],
    gallery: "Place",
    window: float | None,
    stride: float | None,
    shots: bool,
    exclude: tuple[str, ...],
    jobs: int,
    batch: int,
    prune: bool,
    watch: bool,
    metadata: Path | None,
    report: Path | None,
    ray: str | None,
    encoders: int,
    device: str,
    engine: str,
    threads: int,
) -> None:
    """Index videos (files, or folders of them) into a gallery that dgl-search searches.

    Videos that the gallery holds are skipped, so the same command resumes an interrupted run. A renamed
    video keeps its clips, a changed one is indexed again. A broken video is reported and the others are
    indexed; the exit code is then 1.

    Example: dgl-index bundle ~/Videos --gallery gallery --window 10s --stride 5s
    """
    from dgl_runtime.gallery.metadata import parse_metadata
    from dgl_runtime.retriever import Retriever

    _require("--stride", stride, "--window", window)
    _require("--encoders", encoders or None, "--ray", ray)
    if metadata is not None:
        parse_metadata(metadata)  # what is wrong with it shows before the hours of indexing
    videos = tuple(find_path(path) for path in videos)
    broken: dict[str, str] = {}
    told: set[str] = set()  # of what is passed over, which --watch need not say again
    with Retriever(bundle, gallery, device=device, engine=engine, threads=threads) as retriever:

        def run(paths: Sequence[Path]) -> "IndexReport":
            done = retriever.add_videos(
                paths,
                window_s=window,
                stride_s=stride,
                at_shots=shots,
                exclude=exclude,
                jobs=jobs,
                batch=batch,
                prune=prune,
                ray=ray,
                encoders=encoders,
                show_progress=True,
            )
            _tell(done, gallery, told)
            for name in [name for name in broken if _is_below(Path(name), paths)]:
                del broken[name]  # looked at again
            broken.update({one.video: one.reason for one in done.broken})
            if report is not None:
                _write_report(report, broken)
            if metadata is not None:
                _upsert_metadata(metadata, gallery)
            return done

        if not watch:
            sys.exit(1 if run(videos).broken else 0)
        from dgl_runtime.indexing.watch import changed_videos

        missed: set[Path] = set()
        for paths in changed_videos(videos, exclude):
            try:
                run([*missed, *paths])
                missed = set()
            except DglError as error:  # an empty folder, say, need not stay empty
                report_error(str(error))
                missed = {path for path in (*missed, *paths) if path.exists()}


def _require(option: str, given: object, other: str, needed: object) -> None:
    if given is not None and needed is None:
        raise click.UsageError(f"{option} needs {other}.")


def _tell(done: "IndexReport", gallery: "Place", told: set[str]) -> None:
    from dgl_runtime.media.video_files import tell

    if (passed_over := tell(done.passed_over)) and passed_over not in told:
        told.add(passed_over)
        click.echo(f"Skipped: {click.format_filename(passed_over)}.", err=True)
    for remark in done.remarks:
        report_note(remark)
    for broken in done.broken:
        report_error(broken.reason)
    dropped = f"{done.files_dropped} removed, " if done.files_dropped else ""
    click.echo(
        f"{done.num_videos} videos: {done.clips_added} clips added, "
        f"{done.clips_present} already indexed, {dropped}{len(done.broken)} videos broken. "
        f"{click.format_filename(str(gallery))} holds {done.clips_held} clips."
    )


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _write_report(path: Path, broken: Mapping[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "reason"])
        writer.writerows(broken.items())


def _upsert_metadata(path: Path, gallery: "Place") -> None:
    from dgl_runtime.gallery.address import open_gallery

    with open_gallery(gallery, writable=True) as opened:
        taken = opened.upsert_metadata(path, report_note)
    if taken.unmatched:
        shown = ", ".join(taken.unmatched[:3])
        more = f" and {len(taken.unmatched) - 3} more" if len(taken.unmatched) > 3 else ""
        report_error(f"{path} names videos that the gallery does not hold: {shown}{more}.")
    click.echo(f"{click.format_filename(path)}: metadata of {taken.matched} videos taken.")
