"""dgl-search: find the moments of a gallery that fit texts, or look like a picture or a clip."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command
from dgl_runtime.commands.options import (
    GalleryPlace,
    Seconds,
    device_option,
    engine_option,
    threads_option,
)
from dgl_runtime.errors import BundleError, ConfigError
from dgl_runtime.names import find_path
from dgl_runtime.search.moments import GROUPINGS, Hit
from dgl_runtime.tables.text_files import read_list
from dgl_runtime.times import read_seconds, timestamp

if TYPE_CHECKING:
    from dgl_runtime.gallery.address import Place
    from dgl_runtime.retriever import Retriever

_CUT_NAMED = 3
Found = list[tuple[str, list[Hit]]]


@click.command(cls=Command)
@click.argument("gallery", type=GalleryPlace())
@click.argument("queries", nargs=-1)
@click.option(
    "--queries", "file", type=click.Path(path_type=Path), help="A file of queries, one a line."
)
@click.option(
    "--like", multiple=True, help="Find what resembles a picture, a video, or video@time."
)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Default: the one that indexed the gallery."
)
@click.option("--top", "top_k", type=click.IntRange(1), default=5, show_default=True)
@click.option("--where", help="Condition in SQL: camera = 'north' AND modified >= '2026-06'.")
@click.option(
    "--from",
    "from_s",
    type=Seconds(may_be_0=True),
    help="Only moments that end after this time: 90s, 1:30.",
)
@click.option(
    "--until",
    "until_s",
    type=Seconds(may_be_0=True),
    help="Only moments that begin before this time.",
)
@click.option(
    "--group",
    type=click.Choice(GROUPINGS),
    default="apart",
    show_default=True,
    help="Moments apart, merged neighbours, one a video, or every clip.",
)
@click.option(
    "--querybank",
    type=click.Path(path_type=Path),
    help="A file of typical queries, one a line; clips that fit all of them rank lower.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Also draw the hits into this PNG.")
@click.option(
    "--html", type=click.Path(path_type=Path), help="Also write a page that plays the hits."
)
@device_option
@engine_option
@threads_option
def search(
    gallery: "Place",
    queries: tuple[str, ...],
    file: Path | None,
    like: tuple[str, ...],
    bundle: Path | None,
    top_k: int,
    where: str | None,
    from_s: float | None,
    until_s: float | None,
    group: str,
    querybank: Path | None,
    as_json: bool,
    sheet: Path | None,
    html: Path | None,
    device: str,
    engine: str,
    threads: int,
) -> None:
    """Find the moments of a gallery that fit each query.

    Example: dgl-search gallery "a dog jumps into the lake" --top 3 --sheet hits.png
    """
    import numpy as np

    from dgl_runtime.retriever import Retriever
    from dgl_runtime.search.find import Refinement

    texts = [*queries, *(read_queries(file) if file else [])]
    if not texts and not like:
        raise click.UsageError("Give a query, --queries FILE or --like FILE.")
    opened = bundle or bundle_of(gallery)
    with Retriever(opened, gallery, device=device, engine=engine, threads=threads) as retriever:
        bank = retriever.hubness(read_queries(querybank)) if querybank else None
        _tell_cut(texts, retriever)
        refinement = Refinement(_condition(where, from_s, until_s), group, bank)
        embedded = [retriever.embed_queries(texts)]
        embedded += [retriever.embed_example(*_example(name)) for name in like]
        hits = retriever.search_embeddings(np.concatenate(embedded), top_k, refinement)
        found = list(zip((*texts, *like), hits, strict=True))
        _print(found, as_json=as_json, is_empty=not len(retriever.gallery))
        if sheet is not None:
            _draw(sheet, found, retriever)
            click.echo(f"Contact sheet: {sheet}", err=True)
        if html is not None:
            from dgl_runtime.search.page import write_page

            write_page(html, found)
            click.echo(f"Page: {html}", err=True)


def bundle_of(gallery: "Place") -> Path:
    """The bundle that a gallery was made with.

    Raises:
        GalleryError: It is no gallery.
        BundleError: The bundle is not there any more.
    """
    from dgl_runtime.gallery.address import open_gallery

    with open_gallery(gallery) as opened:
        bundle = Path(opened.facts.bundle_path)
    if not bundle.exists():
        raise BundleError(
            f"{bundle} is not a bundle any more, but gallery {gallery} was made with it. "
            "If the bundle was moved, name it with --bundle."
        )
    return bundle


def read_queries(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        ConfigError: There are none, or it is not UTF-8.
    """
    if not (lines := read_list(path)):
        raise ConfigError(f"{path} has no line with a query in it.")
    return lines


def _example(name: str) -> tuple[Path, float | None]:
    """A file, or a file and a time: what comes behind the last @, if the whole is no file."""
    file, _, time = name.rpartition("@")
    if not file or find_path(Path(name)).exists():
        return Path(name), None
    try:
        return Path(file), read_seconds(time)
    except ValueError as error:
        # The @ may be part of the name of a file that is not there.
        if not find_path(Path(file)).exists():
            return Path(name), None
        raise click.UsageError(f"--like {name}: {error}") from error


def _condition(where: str | None, from_s: float | None, until_s: float | None) -> str | None:
    parts = [f"(\n{where}\n)"] if where is not None else []
    parts += [f"end_s > {from_s!r}"] if from_s is not None else []
    parts += [f"start_s < {until_s!r}"] if until_s is not None else []
    return " AND ".join(parts) or None


def _tell_cut(texts: Sequence[str], retriever: "Retriever") -> None:
    """Say which queries are longer than the model reads, the first few in full."""
    cut = [told for text in texts if (told := retriever.tell_cut(text)) is not None]
    for told in cut[:_CUT_NAMED]:
        click.echo(f"Warning: the query {click.format_filename(told)}", err=True)
    if len(cut) > _CUT_NAMED:
        click.echo(f"Warning: {len(cut) - _CUT_NAMED} more queries are too long.", err=True)


def _print(found: Found, *, as_json: bool, is_empty: bool) -> None:
    if as_json:
        rows = [{"query": query, "hits": [asdict(hit) for hit in hits]} for query, hits in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for query, hits in found:
        click.echo(click.format_filename(query))  # as file names, a query need not be valid UTF-8
        for rank, hit in enumerate(hits, start=1):
            click.echo(
                f"{rank:4d}  {hit.similarity:.4f}  {timestamp(hit.start_s)} - {timestamp(hit.end_s)}  "
                f"{click.format_filename(hit.video)}"
            )
        if not hits:
            click.echo("      " + ("the gallery is empty" if is_empty else "nothing found"))


def _draw(sheet: Path, found: Found, retriever: "Retriever") -> None:
    import numpy as np

    from dgl_runtime.media.video import Span, read_clips
    from dgl_runtime.search.contact_sheet import SheetHit, SheetRow, draw_contact_sheet

    frame_spec = retriever.encoder.input_spec.frames

    def strip(rank: int, hit: Hit) -> SheetHit:
        span = Span(hit.start_s, hit.end_s)
        (frames,) = read_clips(Path(hit.video), [span], frame_spec)
        when = f"{timestamp(hit.start_s)} - {timestamp(hit.end_s)}"
        title = f"{rank}. {Path(hit.video).name}  {when}  {hit.similarity:.3f}"
        return SheetHit(title, frames, np.array(hit.frame_weights))

    rows = [
        SheetRow(query, [strip(rank, hit) for rank, hit in enumerate(hits, start=1)])
        for query, hits in found
    ]
    draw_contact_sheet(sheet, rows)
