"""The writing side of a run of indexing: all that it asks of the gallery and writes to it, in one thread.

The thread that looks into videos asks which clips to read, while another encodes and adds what was read:
neither touches the gallery itself, so no store behind it needs to stand two threads.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from dgl_runtime.decoding.read_video import Done, Job, Seen
from dgl_runtime.encoder.encoder import ClipEmbeddings
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Clip, FileState
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.indexing.sought import Sought, is_gone
from dgl_runtime.media.segmentation import Segmentation

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class BrokenVideo:
    """A video that could not be read, or not all of it, and why."""

    video: str
    reason: str


def _in_its_thread(
    verb: Callable[Concatenate["Ledger", Given], Answer],
) -> Callable[Concatenate["Ledger", Given], Answer]:
    @wraps(verb)
    def done_there(self: "Ledger", /, *given: Given.args, **named: Given.kwargs) -> Answer:
        return self._thread.submit(verb, self, *given, **named).result()

    return done_there


class Ledger:
    """The verbs of a run. Use as a context; any thread may call them, one after the other is done.

    Attributes:
        added: Clips that were added.
        present: Clips of the run's videos that were there.
        held: Clips of the gallery in the end.
        broken: Videos that could not be read, or not all of them.
        remarks: On videos that were read although something is odd about them.
    """

    def __init__(self, gallery: AnyGallery, segmentation: Segmentation) -> None:
        """Begin; the gallery is open for writing."""
        self.added = self.present = self.held = 0
        self.broken: list[BrokenVideo] = []
        self.remarks: list[str] = []
        self._gallery, self._segmentation = gallery, str(segmentation)
        self._thread = ThreadPoolExecutor(1, "gallery")
        self._states: dict[Path, FileState] = {}  # before the files were looked into
        self._links: dict[str, str] = {}  # where each leads
        # Clips that a video will bring, so that none like it does.
        self._promised: dict[tuple[str, float, float], Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # what was begun is finished

    @_in_its_thread
    def plan(self, videos: Iterable[Path]) -> list[Job]:
        """What to look into: not the files of which the gallery has everything and which did not change."""
        jobs = []
        for path in videos:
            content = None
            if (state := _state_of(path)) is not None:  # else the reader will say what is wrong
                self._states[path] = state
                if path.is_symlink():
                    self._links[str(path.parent.resolve() / path.name)] = state.path
                (known,) = self._gallery.plan([state], self._segmentation)
                if known.content_sha256 is not None and known.is_complete:
                    self.present += known.num_clips
                    self._remove_old_names(known.content_sha256, state.path)
                    continue
                content = known.content_sha256
            jobs.append(Job(path, content))
        return jobs

    @_in_its_thread
    def choose(self, seen: Seen) -> Sequence[int]:
        """Which clips of a video to read: those that are not there and that no other brings."""
        if (state := self._states.get(seen.path)) is not None:
            # Before the clips come: those of what the file held before are wrong from now on.
            self._gallery.upsert(state, seen.content, seen.duration_s)
        clips = clips_of(seen)
        free = [number for number, clip in enumerate(clips) if clip.key not in self._promised]
        absent = [free[n] for n in self._gallery.missing([clips[number] for number in free])]
        self._promised.update({clips[number].key: seen.path for number in absent})
        self.present += len(clips) - len(absent)
        return absent

    @_in_its_thread
    def ingest(self, clips: Sequence[Clip], encoded: ClipEmbeddings) -> None:
        """Add clips: all of them, or none."""
        self._gallery.ingest(clips, encoded.embeddings, encoded.frame_weights)
        self.added += len(clips)

    @_in_its_thread
    def finish(self, done: Done) -> None:
        """A video is through: was all of it read, and was it the same file all the time?"""
        path, seen = done.path, done.seen
        before, clips = self._states.get(path), clips_of(seen) if seen is not None else []
        for clip in clips:
            if self._promised.get(clip.key) == path:  # by now it has been added, or was lost
                del self._promised[clip.key]
        if (fault := done.fault) is None and seen is not None and before is not None:
            if before != _state_of(path):
                fault = f"{path} changed while it was read. Index it again when it is complete."
                self._forget(before)
            elif not self._gallery.missing(clips):
                self._gallery.finish(seen.content, self._segmentation)
        elif done.is_unreadable and seen is None and before is not None:
            (known,) = self._gallery.plan([before], self._segmentation)
            if known.content_sha256 is None:
                self._gallery.remove([before.path])  # what it held before is gone
        if seen is not None and before is not None:
            self._remove_old_names(seen.content, before.path)
        self.remarks += [f"{path} {remark}." for remark in (seen.remarks if seen else ())]
        if fault is not None:
            self.broken.append(BrokenVideo(str(path), fault))

    def _forget(self, before: FileState) -> None:
        """Remove a file, unless another writer has seen since what it is now."""
        (known,) = self._gallery.plan([before], self._segmentation)
        if known.content_sha256 is not None:
            self._gallery.remove([before.path])

    @_in_its_thread
    def close_run(self, sought: Sought) -> int:
        """Drop what is missing, if that was asked for, and take its room back; how many files were."""
        self._remove_replaced()
        missing = (
            sought.missing(file.path for file in self._gallery.files()) if sought.prune else []
        )
        if missing:
            self._gallery.remove(missing)
        try:
            self._gallery.compact()
        except GalleryError as error:  # the clips are there all the same
            self.broken.append(BrokenVideo(self._gallery.address, str(error)))
        self.held = len(self._gallery)
        return len(missing)

    def _remove_replaced(self) -> None:
        """Drop files in whose places there are links now to others, of which the gallery knows."""
        if self._links:
            placed = {file.path for file in self._gallery.files()}
            links = [name for name, other in self._links.items() if {name, other} <= placed]
            if links:
                self._gallery.remove(links)

    def _remove_old_names(self, content: str, name: str) -> None:
        names = [old.path for old in self._gallery.files(content) if old.path != name]
        if gone := [old for old in names if is_gone(old)]:
            self._gallery.remove(gone)


def clips_of(seen: Seen, numbers: Sequence[int] | None = None) -> list[Clip]:
    """The clips of a video, or those of some of its spans, as a gallery has them."""
    path = str(seen.path.resolve())
    chosen = range(len(seen.spans)) if numbers is None else numbers
    spans = [seen.spans[number] for number in chosen]
    return [Clip(path, seen.content, one.start_s, one.end_s, seen.duration_s) for one in spans]


def _state_of(path: Path) -> FileState | None:
    try:
        return FileState.of(path.resolve())
    except OSError:
        return None
