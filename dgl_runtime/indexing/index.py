"""Indexing: videos -> clips -> frames -> embeddings -> gallery, resumable and stopped by no broken file.

Processes decode (``decode_pool.py``) while this one encodes. What the gallery knows of files decides what
is looked into at all: a file of the same size and time is not opened, a known content not decoded again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dgl_runtime.decoding.decode_pool import Clips, DecodePool, Done, Job, Seen
from dgl_runtime.decoding.read_ahead import read_ahead
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import GalleryError, MediaError
from dgl_runtime.gallery.gallery import Clip, FileState, Gallery
from dgl_runtime.media.cutting import Cutting
from dgl_runtime.media.video_files import FoundVideos, find_videos, is_left_out

CLIPS_PER_BATCH = 8
_AHEAD = 8  # things found that wait to be taken


@dataclass(frozen=True)
class BrokenVideo:
    """A video that could not be read, or not all of it, and why."""

    video: str
    reason: str


@dataclass(frozen=True)
class IndexReport:
    """What one run of indexing did."""

    num_videos: int
    clips_added: int
    clips_present: int  # of these videos, in the gallery before
    files_dropped: int  # gone from the disk, or excluded now
    passed_over: Mapping[str, int]  # what is no video, as ``video_files.FoundVideos`` counts it
    broken: tuple[BrokenVideo, ...]
    remarks: tuple[str, ...]  # on videos that were read although something is odd about them
    encoding_s: float
    waiting_s: float  # in which the encoder had nothing to do


@dataclass(frozen=True)
class Sought:
    """Videos that were looked for.

    Attributes:
        found: What was found.
        paths: The files and folders that were looked into.
        exclude: Patterns of what was left out.
        prune: Whether the gallery forgets what is below the folders and was not found.
    """

    found: FoundVideos
    paths: Sequence[Path]
    exclude: Sequence[str]
    prune: bool


def look_for_videos(paths: Sequence[Path], exclude: Sequence[str], *, prune: bool) -> Sought:
    """Find videos; that folders hold none is all right where a gallery is to forget what went.

    Raises:
        MediaError: A path does not exist, or there is no video.
    """
    try:
        found = find_videos(paths, exclude)
    except MediaError:
        if not prune or not all(path.is_dir() for path in paths):
            raise
        found = FoundVideos([], {})
    return Sought(found, paths, exclude, prune)


def index_videos(
    encoder: Encoder,
    gallery: Gallery,
    sought: Sought,
    cutting: Cutting,
    *,
    jobs: int,
    show_progress: bool,
) -> IndexReport:
    """Add videos to a gallery that is open for writing; see ``Retriever.add_videos``."""
    from tqdm import tqdm

    videos = sought.found.videos
    with (
        DecodePool(cutting, encoder.input_spec.frames, jobs=jobs or default_jobs()) as pool,
        tqdm(total=len(videos), unit="video", disable=None if show_progress else True) as bar,
    ):
        run = _Run(encoder, gallery, cutting)
        unknown = [job for path in videos if (job := run.look_up(path)) is not None]
        bar.update(len(videos) - len(unknown))
        with closing(read_ahead(pool.read(unknown, run.choose), pool.stop, most=_AHEAD)) as found:
            started = waiting_since = time.perf_counter()
            for items in found:
                run.waiting_s += time.perf_counter() - waiting_since
                run.encode([item for item in items if isinstance(item, Clips)])
                for item in items:
                    if isinstance(item, Done):
                        run.finish(item)
                        bar.update()
                rate = run.added / (time.perf_counter() - started)
                shown = {"clips": run.added, "clips/s": f"{rate:.1f}", "there": run.present}
                bar.set_postfix({**shown, "broken": len(run.broken)})
                waiting_since = time.perf_counter()
        dropped = _remove_missing(gallery, sought) if sought.prune else 0
        try:
            gallery.compact()
        except GalleryError as error:  # the clips are there all the same
            run.broken.append(BrokenVideo(str(gallery.folder), str(error)))
    return IndexReport(
        num_videos=len(videos),
        clips_added=run.added,
        clips_present=run.present,
        files_dropped=dropped,
        passed_over=sought.found.passed_over,
        broken=tuple(run.broken),
        remarks=tuple(run.remarks),
        encoding_s=run.encoding_s,
        waiting_s=run.waiting_s,
    )


def default_jobs() -> int:
    """Processes that decode: one for each core but one, at most 4, because more wait for the encoder."""
    return min(4, max(1, (os.cpu_count() or 1) - 1))


@dataclass
class _Run:
    """One run: what is done with each thing that is found."""

    encoder: Encoder
    gallery: Gallery
    cutting: Cutting
    added: int = 0
    present: int = 0
    encoding_s: float = 0.0
    waiting_s: float = 0.0
    broken: list[BrokenVideo] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    _states: dict[Path, FileState] = field(default_factory=dict)  # before they were looked into
    # Clips that a video will bring, so that none like it does.
    _promised: dict[tuple[str, float, float], Path] = field(default_factory=dict)

    def look_up(self, path: Path) -> Job | None:
        """What to look into; None: the gallery has all of this file, which did not change."""
        try:
            state = FileState.of(path.resolve())
        except OSError:  # the worker will say what is wrong
            return Job(path)
        self._states[path] = state
        (known,) = self.gallery.plan([state], str(self.cutting))
        if known.content_sha256 is not None and known.is_complete:
            self.present += known.num_clips
            self._remove_old_names(known.content_sha256, state.path)
            return None
        return Job(path, known.content_sha256)

    def choose(self, seen: Seen) -> Sequence[int]:
        """Which clips of a video to read; called by the thread that looks."""
        if (state := self._states.get(seen.path)) is not None:
            # Before the clips come: those of what the file held before are wrong from now on.
            self.gallery.place(state, seen.content, seen.duration_s)
        clips = _clips_of(seen)
        # In this order: a promise is taken back when its clip is there.
        free = [number for number, clip in enumerate(clips) if clip.key not in self._promised]
        absent = [free[n] for n in self.gallery.missing([clips[number] for number in free])]
        self._promised.update({clips[number].key: seen.path for number in absent})
        self.present += len(clips) - len(absent)
        return absent

    def encode(self, found: Sequence[Clips]) -> None:
        """Encode clips, of several videos together, and add them."""
        if not found:
            return
        started = time.perf_counter()
        clips = [clip for one in found for clip in _clips_of(one.seen, one.numbers)]
        frames = np.concatenate([one.frames for one in found])
        for first in range(0, len(clips), CLIPS_PER_BATCH):
            part = slice(first, first + CLIPS_PER_BATCH)
            encoded = self.encoder.embed_clips(frames[part])
            self.gallery.ingest(clips[part], encoded.embeddings, encoded.frame_weights)
            self.added += len(clips[part])
        self.encoding_s += time.perf_counter() - started

    def finish(self, done: Done) -> None:
        """A video is through: was all of it read, and was it the same file all the time?"""
        path, seen = done.path, done.seen
        before, clips = self._states.get(path), _clips_of(seen) if seen is not None else []
        for clip in clips:
            if self._promised.get(clip.key) == path:  # by now it has been added, or was lost
                del self._promised[clip.key]
        if (fault := done.fault) is None and seen is not None and before is not None:
            if before != _state_now(path):
                fault = f"{path} changed while it was read. Index it again when it is complete."
                self.gallery.remove([before.path])
            elif not self.gallery.missing(clips):
                self.gallery.finish(seen.content, str(self.cutting))
        elif done.is_unreadable and seen is None and before is not None:
            (known,) = self.gallery.plan([before], str(self.cutting))
            if known.content_sha256 is None:
                self.gallery.remove([before.path])  # what it held before is gone
        if seen is not None and before is not None:
            self._remove_old_names(seen.content, before.path)
        self._tell(done, fault)

    def _tell(self, done: Done, fault: str | None) -> None:
        """Note what a person should know of a video."""
        remarks = done.seen.remarks if done.seen is not None else ()
        self.remarks += [f"{done.path} {remark}." for remark in remarks]
        if fault is not None:
            self.broken.append(BrokenVideo(str(done.path), fault))

    def _remove_old_names(self, content: str, name: str) -> None:
        names = [old.path for old in self.gallery.files(content) if old.path != name]
        if gone := [old for old in names if _is_gone(old)]:
            self.gallery.remove(gone)


def _clips_of(seen: Seen, numbers: Sequence[int] | None = None) -> list[Clip]:
    path = str(seen.path.resolve())
    chosen = range(len(seen.spans)) if numbers is None else numbers
    spans = [seen.spans[number] for number in chosen]
    return [Clip(path, seen.content, one.start_s, one.end_s, seen.duration_s) for one in spans]


def _state_now(path: Path) -> FileState | None:
    try:
        return FileState.of(path.resolve())
    except OSError:
        return None


def _remove_missing(gallery: Gallery, sought: Sought) -> int:
    """Drop files below the folders given that are not there any more, or are left out now."""
    roots = [path.resolve() for path in sought.paths]
    here = {str(video.resolve()) for video in sought.found.videos}
    gone = [
        name
        for name in (file.path for file in gallery.files())
        if name not in here
        and any(root in Path(name).parents for root in roots)
        and (_is_gone(name) or is_left_out(Path(name), sought.paths, sought.exclude))
    ]
    gallery.remove(gone)
    return len(gone)


def _is_gone(name: str) -> bool:
    """Whether there is no such file; one that may not be looked at is not gone."""
    try:
        os.lstat(name)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
