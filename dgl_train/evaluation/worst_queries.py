"""The rank of every query, and pictures of those a model fails at most."""

import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.media.video import Span, read_clips
from dgl_runtime.search.contact_sheet import SheetHit, SheetRow, draw_contact_sheet
from dgl_runtime.search.metrics import text_to_video, video_to_text
from dgl_train.data.datasets import CaptionedClip
from dgl_train.evaluation.evaluate import Embeddings, Encoders, distinct_clips

NUM_WORST, _NUM_AHEAD = 10, 3
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class RankedQuery:
    """A caption as a query.

    Attributes:
        caption: Its text.
        rank: Of its clip, 1 = best.
        clip: Its clip, as text.
        best_clip: The clip found first, as text.
    """

    caption: str
    rank: int
    clip: str
    best_clip: str


@dataclass(frozen=True)
class RankedClip:
    """A clip that ranks all captions.

    Attributes:
        clip: The clip, as text.
        rank: Of its best caption, 1 = best.
    """

    clip: str
    rank: int


@dataclass(frozen=True)
class WorstQuery:
    """A query with a picture of its clip and the clips that were found before it."""

    query: RankedQuery
    picture: bytes  # JPEG


def rank_queries(clips: Sequence[CaptionedClip], embeddings: Embeddings) -> list[RankedQuery]:
    """The rank of every caption's clip, in the order of the data set."""
    similarity = embeddings.similarity()
    found = text_to_video(similarity, embeddings.caption_clip)
    distinct = distinct_clips(clips)
    return [
        RankedQuery(clip.caption, int(rank), describe(clip), describe(distinct[best]))
        for clip, rank, best in zip(clips, found, similarity.argmax(axis=1), strict=True)
    ]


def rank_clips(
    clips: Sequence[CaptionedClip], embeddings: Embeddings, *, group_captions: bool
) -> list[RankedClip]:
    """The rank of every clip's best caption, in the order of the data set."""
    found = video_to_text(
        embeddings.similarity(), embeddings.caption_clip, group_captions=group_captions
    )
    return [
        RankedClip(describe(clip), int(rank))
        for clip, rank in zip(distinct_clips(clips), found, strict=True)
    ]


def describe(clip: CaptionedClip) -> str:
    """A clip for people: its video, and from when to when if it is a part of it."""
    if clip.start_s is None and clip.end_s is None:
        return str(clip.video)
    end = "end" if clip.end_s is None else f"{clip.end_s:g} s"
    return f"{clip.video}, {clip.start_s or 0:g} s to {end}"


def draw_worst(
    encoders: Encoders,
    clips: Sequence[CaptionedClip],
    embeddings: Embeddings,
    queries: Sequence[RankedQuery],
) -> list[WorstQuery]:
    """Draw the queries with the worst ranks, worst first; a query found first is never among them.

    Raises:
        MediaError: A video cannot be read.
    """
    order = sorted(range(len(queries)), key=lambda row: -queries[row].rank)[:NUM_WORST]
    distinct = distinct_clips(clips)
    worst = []
    for row in order:
        if queries[row].rank == 1:
            break
        own = int(embeddings.caption_clip[row])
        similarity = embeddings.clips @ embeddings.captions[row]
        ahead = [int(n) for n in np.argsort(-similarity, kind="stable") if n != own][:_NUM_AHEAD]
        hits = [
            _hit(encoders, distinct[own], f"right clip, rank {queries[row].rank}", similarity[own])
        ]
        hits += [
            _hit(encoders, distinct[n], f"rank {rank}", similarity[n])
            for rank, n in enumerate(ahead[: queries[row].rank - 1], start=1)
        ]
        worst.append(WorstQuery(queries[row], _draw(SheetRow(clips[row].caption, hits))))
    return worst


def _hit(encoders: Encoders, clip: CaptionedClip, what: str, similarity: float) -> SheetHit:
    span = Span(clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s)
    frames: NDArray[np.uint8] = next(read_clips(clip.video, [span], encoders.frames))
    name = describe(replace(clip, video=Path(clip.video.name)))
    title = f"{what}, similarity {similarity:.3f}: {name}"
    return SheetHit(title, frames, encoders.weigh_frames(frames[None])[0])


def _draw(row: SheetRow) -> bytes:
    """A contact sheet as JPEG: a fraction of a PNG of natural pictures."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        draw_contact_sheet(path, [row])
        jpeg = io.BytesIO()
        with Image.open(path) as sheet:
            sheet.save(jpeg, format="JPEG", quality=_JPEG_QUALITY)
    return jpeg.getvalue()
