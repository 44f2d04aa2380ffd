"""Indexing: videos -> windows -> frames -> embeddings -> gallery, resumable and stopped by no broken file.

Frames are decoded in a thread of their own while the previous batch is encoded. Batches are cut the same
way in every run, so a gallery that was interrupted and resumed equals an undisturbed one.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle import sha256_of
from dgl_runtime.errors import GalleryError, MediaError
from dgl_runtime.gallery import APPROXIMATE_PAYS_FROM, Clip, Gallery
from dgl_runtime.gallery_files import HEADER
from dgl_runtime.video import Span, VideoInfo, cut_windows, find_videos, probe, read_clips

if TYPE_CHECKING:
    from dgl_runtime.retriever import Retriever

CLIPS_PER_BATCH = 8
_BATCHES_AHEAD = 2
Item = TypeVar("Item")


@dataclass(frozen=True)
class BrokenVideo:
    """A video that could not be read, and why."""

    video: str
    reason: str


@dataclass(frozen=True)
class IndexReport:
    """What one run of indexing did."""

    num_videos: int
    clips_added: int
    clips_present: int  # in the gallery before
    broken: tuple[BrokenVideo, ...]


@dataclass(frozen=True)
class _Batch:
    """Up to ``CLIPS_PER_BATCH`` clips of one video, ready to encode."""

    clips: list[Clip]
    frames: NDArray[np.uint8]  # [B, F, 3, S, S]


@dataclass(frozen=True)
class _Done:
    """A video is through."""

    clips_present: int
    broken: BrokenVideo | None


def index_videos(
    retriever: "Retriever",
    paths: Iterable[Path],
    cutting: tuple[float | None, float | None],
    *,
    show_progress: bool,
) -> IndexReport:
    """Add videos to the retriever's gallery; see ``Retriever.add_videos``.

    Args:
        retriever: Encodes, and names the gallery.
        paths: Files and folders.
        cutting: Window and stride in seconds, as ``cut_windows`` takes them.
        show_progress: Draw a progress bar on stderr.
    """
    from tqdm import tqdm

    videos = find_videos(list(paths))
    added = present = 0
    broken: list[BrokenVideo] = []
    with (
        _open_gallery(retriever) as gallery,
        closing(_ahead(_decode_videos(videos, cutting, gallery, retriever))) as items,
        tqdm(total=len(videos), unit="video", disable=None if show_progress else True) as bar,
    ):
        for item in items:
            if isinstance(item, _Batch):
                encoded = retriever.embed_clips(item.frames)
                gallery.append(item.clips, encoded.embeddings, encoded.frame_weights)
                added += len(item.clips)
            else:
                present += item.clips_present
                broken += [item.broken] if item.broken else []
                bar.update()
            bar.set_postfix(clips=added, present=present, broken=len(broken))
        _index_large(gallery)
    return IndexReport(len(videos), added, present, tuple(broken))


def _open_gallery(retriever: "Retriever") -> Gallery:
    folder, bundle = retriever.gallery_folder, retriever.bundle
    if folder is None:
        raise GalleryError("no gallery was given to add to. Open Retriever(bundle, gallery).")
    if (folder / HEADER).exists():  # else new, or left behind by a run killed in its first moment
        return Gallery.open(folder, bundle_id=bundle.id, writable=True)
    return Gallery.create(
        folder,
        bundle_id=bundle.id,
        bundle_path=bundle.folder.resolve(),
        embed_dim=bundle.manifest.embed_dim,
        num_frames=bundle.manifest.num_frames,
    )


def _decode_videos(
    videos: list[Path],
    cutting: tuple[float | None, float | None],
    gallery: Gallery,
    retriever: "Retriever",
) -> Iterator[_Batch | _Done]:
    promised: set[tuple[str, float, float]] = set()  # handed out, perhaps not appended yet
    for path in videos:
        try:
            info = probe(path)  # first, because it refuses pipes and devices: they have no end
            content = content_hash(path)
            spans = _windows(info, cutting)
            clips = [
                Clip(str(path.resolve()), content, span.start_s, span.end_s, info.duration_s)
                for span in spans
            ]
            absent = [clip.key not in promised and not gallery.has(*clip.key) for clip in clips]
            promised.update(clip.key for clip in clips)
            for batch in _absent_batches(clips, absent):
                here = [Span(clip.start_s, clip.end_s) for clip in batch]
                read = read_clips(path, here, retriever.num_frames, retriever.frame_size)
                yield _Batch(batch, np.stack(list(read)))
        except MediaError as error:
            yield _Done(0, BrokenVideo(str(path), str(error)))
        else:
            yield _Done(absent.count(False), None)


def content_hash(path: Path) -> str:
    """sha256 of a video's bytes, as hex: the same video under any name.

    Raises:
        MediaError: If the file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise MediaError(
            f"{path} cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _windows(info: VideoInfo, cutting: tuple[float | None, float | None]) -> list[Span]:
    window_s, stride_s = cutting
    step = stride_s or window_s
    if step is not None and info.duration_s / step > max(info.num_frames, 1):
        raise MediaError(
            f"{info.path} claims to last {info.duration_s:.0f} s with {info.num_frames} frames, "
            f"fewer than its windows of {step} s: its timestamps are damaged. Re-encode it."
        )
    return cut_windows(info.duration_s, window_s, stride_s)


def _absent_batches(clips: list[Clip], absent: list[bool]) -> Iterator[list[Clip]]:
    """Batches at fixed places, less the clips that are there already."""
    for start in range(0, len(clips), CLIPS_PER_BATCH):
        part = slice(start, start + CLIPS_PER_BATCH)
        if batch := [clip for clip, new in zip(clips[part], absent[part], strict=True) if new]:
            yield batch


def _index_large(gallery: Gallery) -> None:
    """Index a large gallery for approximate search, if the extra ``large`` is installed."""
    if len(gallery) >= APPROXIMATE_PAYS_FROM and find_spec("usearch"):
        gallery.build_approximate_index()


def _ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Run an iterator in a thread, a few items ahead; its errors come out here."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(maxsize=_BATCHES_AHEAD)
    stop = threading.Event()

    def put(item: Item | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer
            put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        worker.join(timeout=10)
