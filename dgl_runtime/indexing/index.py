"""Indexing: videos -> clips -> frames -> embeddings -> gallery, resumable and stopped by no broken file.

plan (``ledger.py``) -> read (``read_video.py``, in processes while this one encodes) -> encode -> ingest. What
the gallery knows of files decides what is looked into at all: a file of the same size and time is not opened,
a known content not decoded again.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from dgl_runtime.decoding.read_ahead import read_ahead
from dgl_runtime.decoding.read_video import Clips, Done, Found, Reader
from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder
from dgl_runtime.gallery.clips import Clip
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.indexing.ledger import BrokenVideo, Ledger, clips_of
from dgl_runtime.indexing.sought import Sought
from dgl_runtime.media.segmentation import Segmentation

BATCH = 8  # clips that are encoded together: enough for a CPU
_AHEAD = 64  # clips that wait to be encoded, or twice a batch


@dataclass(frozen=True)
class IndexReport:
    """What one run of indexing did."""

    num_videos: int
    clips_added: int
    clips_present: int  # of these videos, in the gallery before
    clips_held: int  # by the gallery in the end
    files_dropped: int  # gone from the disk, or excluded now
    passed_over: Mapping[str, int]  # what is no video, as ``video_files.FoundVideos`` counts it
    broken: tuple[BrokenVideo, ...]
    remarks: tuple[str, ...]  # on videos that were read although something is odd about them
    encoding_s: float
    waiting_s: float  # in which the encoder had nothing to do


def index_videos(
    encoder: Encoder,
    gallery: AnyGallery,
    sought: Sought,
    segmentation: Segmentation,
    reader: Reader,
    *,
    batch: int = BATCH,
    show_progress: bool = False,
) -> IndexReport:
    """Add videos to a gallery.

    Args:
        encoder: Embeds the clips.
        gallery: Open for writing; of the encoder's bundle.
        sought: The videos.
        segmentation: How they are cut into clips.
        reader: Reads them with this segmentation and the encoder's frames.
        batch: Clips that are encoded together, 1 or more.
        show_progress: Draw a progress bar on stderr.

    Raises:
        GalleryError: The gallery cannot be written.
    """
    from tqdm import tqdm

    videos = sought.found.videos
    encoding_s = waiting_s = 0.0
    with (
        Ledger(gallery, segmentation) as ledger,
        tqdm(total=len(videos), unit="video", disable=None if show_progress else True) as bar,
    ):
        unknown = ledger.plan(videos)
        bar.update(len(videos) - len(unknown))
        reading = reader.read(unknown, ledger.choose)
        ahead = read_ahead(reading, reader.stop, most=max(_AHEAD, 2 * batch), weigh=_count_clips)
        with closing(ahead) as found:
            started = waiting_since = time.perf_counter()
            for items in found:
                begun = time.perf_counter()
                waiting_s += begun - waiting_since
                clips = [item for item in items if isinstance(item, Clips)]
                for part, encoded in _encode(encoder, clips, batch):
                    ledger.ingest(part, encoded)
                waiting_since = time.perf_counter()
                encoding_s += waiting_since - begun
                for item in items:
                    if isinstance(item, Done):
                        ledger.finish(item)
                        bar.update()
                rate = ledger.added / (time.perf_counter() - started)
                shown = {"clips": ledger.added, "clips/s": f"{rate:.1f}", "there": ledger.present}
                bar.set_postfix({**shown, "broken": len(ledger.broken)})
        dropped = ledger.close_run(sought)
    return report_of(ledger, sought, dropped, encoding_s=encoding_s, waiting_s=waiting_s)


def report_of(
    ledger: Ledger, sought: Sought, files_dropped: int, *, encoding_s: float, waiting_s: float
) -> IndexReport:
    """What a run did, by its ledger."""
    return IndexReport(
        num_videos=len(sought.found.videos),
        clips_added=ledger.added,
        clips_present=ledger.present,
        clips_held=ledger.held,
        files_dropped=files_dropped,
        passed_over=sought.found.passed_over,
        broken=tuple(ledger.broken),
        remarks=tuple(ledger.remarks),
        encoding_s=encoding_s,
        waiting_s=waiting_s,
    )


def _count_clips(found: Found) -> int:
    return len(found.numbers) if isinstance(found, Clips) else 0


def _encode(
    encoder: Encoder, found: Sequence[Clips], batch: int
) -> Iterator[tuple[list[Clip], ClipEmbeddings]]:
    """Encode clips, of several videos together."""
    if not found:
        return
    clips = [clip for one in found for clip in clips_of(one.seen, one.numbers)]
    frames = np.concatenate([one.frames for one in found])
    for first in range(0, len(clips), batch):
        part = slice(first, first + batch)
        yield clips[part], encoder.embed_clips(frames[part])


def default_jobs() -> int:
    """Processes that decode: one for each core but one, at most 4, because more wait for the encoder."""
    return min(4, max(1, (os.cpu_count() or 1) - 1))
