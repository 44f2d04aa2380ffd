"""dgl-bench decode: F frames of a clip, ours and what others offer, on the same files.

Every round reads the clip once with every decoder, in rotating order. After the timing the frames are
compared with those of a plain pass over the whole video: ours must be equal, others are matched.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.decoders import (
    CLIP,
    DECODERS,
    OURS,
    Decoder,
    Pixels,
    Video,
    expected_frames,
)
from benchmarks.machine import load_average
from benchmarks.timing import Paired, Spread, time_paired
from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import one_line, open_container
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.video import probe

WARM_UP = 0  # every decoder has run twice before the rounds
SLOW = 6  # decoders whose call takes this many times ours are not timed further
THUMBNAIL = (64, 36)
SAME = 0.25  # grey levels: a frame this near to the expected one's thumbnail is that frame
FORMS = ("frames", "clip")  # pictures as they are, and made small


@dataclass(frozen=True)
class Sight:
    """What a decoder returned, against a plain pass over the video.

    Attributes:
        other_frames: How many of its frames show another moment than asked for.
        pixels_off: Mean absolute difference of its small frames from ours, grey levels.
    """

    other_frames: int
    pixels_off: float


@dataclass(frozen=True)
class Work:
    """Where our time goes, one thread, milliseconds, and what the video is."""

    num_frames: int
    keyframes: int
    packets_read: int
    frames_decoded: int
    open_ms: float
    index_ms: float
    frames_ms: float  # without the index
    resize_ms: float


@dataclass
class ClipResult:
    """All decoders on one clip."""

    name: str
    work: Work
    paired: dict[str, Paired[Pixels]] = field(default_factory=dict)  # by form
    once_ms: dict[str, dict[str, float]] = field(default_factory=dict)  # slow ones: form, decoder
    failures: dict[str, str] = field(default_factory=dict)  # decoder -> why
    sights: dict[str, Sight] = field(default_factory=dict)  # decoder -> what it returned

    def rival(self, form: str) -> str | None:
        """The fastest decoder that needs no torch, beside ours."""
        free = {one.name for one in DECODERS if not one.needs_torch} - {OURS}
        times = {
            name: self.paired[form].spread_ms(name).median for name in self.paired[form].times_ms
        }
        return min(free & times.keys(), key=times.__getitem__, default=None)

    def speedup(self, form: str) -> Spread | None:
        """How many times faster than the rival ours is, from the ratio in each round."""
        rival = self.rival(form)
        return self.paired[form].speedup(OURS, over=rival) if rival else None


@dataclass(frozen=True)
class DecodeResult:
    """Everything that was measured."""

    threads: int
    rounds: int
    clips: list[ClipResult]
    missing: list[Decoder]
    load_before: float | None


def bench_decode(paths: Sequence[Path], *, threads: int, rounds: int) -> DecodeResult:
    """Measure all installed decoders on some videos.

    Raises:
        MediaError: A video cannot be read, or our frames are not those of a plain pass.
    """
    load_before = load_average()
    missing = [one for one in DECODERS if not one.is_installed]
    installed = [one for one in DECODERS if one.is_installed]
    clips = [bench_clip(path, installed, threads, rounds) for path in paths]
    return DecodeResult(threads, rounds, clips, missing, load_before)


def bench_clip(path: Path, decoders: Sequence[Decoder], threads: int, rounds: int) -> ClipResult:
    """Measure some decoders on one video, then look at what they returned."""
    click.echo(path.name, err=True)
    info = probe(path)
    video = Video(path, info.width, info.height)
    result = ClipResult(path.name, measure_work(path))
    returned: dict[str, dict[str, Pixels]] = {}
    for form in FORMS:
        calls: dict[str, Callable[[], Pixels]] = {
            one.name: partial(getattr(one, form), video, threads)
            for one in decoders
            if one.name not in result.failures
        }
        _call_each(calls, result.failures)  # packages are imported, files come into memory
        once_ms, returned[form] = _call_each(calls, result.failures)
        slow = {name: ms for name, ms in once_ms.items() if ms > SLOW * once_ms[OURS]}
        timed = {name: calls[name] for name in once_ms if name not in slow}
        result.once_ms[form] = slow
        result.paired[form] = time_paired(
            timed, rounds=rounds, warm_up=WARM_UP, label=f"{path.name}, {form}"
        )
    result.sights.update(look_at(path, returned["frames"], returned["clip"]))
    return result


def _call_each(
    calls: dict[str, Callable[[], Pixels]], failures: dict[str, str]
) -> tuple[dict[str, float], dict[str, Pixels]]:
    """Call each once: its time in milliseconds and what it returns; those that fail are noted."""
    times_ms, returned = {}, {}
    for name, call in calls.items():
        if name in failures:
            continue
        started = time.perf_counter()
        try:
            returned[name] = call()
        except Exception as error:  # whatever a package of somebody else raises
            if name == OURS:
                raise
            failures[name] = f"{type(error).__name__}: {one_line(error)[:80]}"
            continue
        times_ms[name] = 1000 * (time.perf_counter() - started)
    return times_ms, returned


def look_at(path: Path, frames: dict[str, Pixels], clips: dict[str, Pixels]) -> dict[str, Sight]:
    """Compare what decoders returned with a plain pass over the whole video.

    Raises:
        MediaError: Our frames are not those of the plain pass.
    """
    index = read_index(path)
    expected = expected_frames(index)
    plain = FrameReader(path, index, may_skip=False).read(range(len(index.shown)))
    thumbnails, wanted = [], {}
    for number, picture in plain:
        thumbnails.append(_thumbnail(picture))
        if number in set(expected):
            wanted[number] = picture
    if not np.array_equal(frames[OURS], np.stack([wanted[number] for number in expected])):
        raise MediaError(f"{path}: our frames differ from a plain pass. Their time means nothing.")
    moments = np.stack(thumbnails)
    return {
        name: Sight(
            sum(
                _is_another(moments, one, number)
                for one, number in zip(pictures, expected, strict=True)
            ),
            float(np.abs(clips[name].astype(np.int16) - clips[OURS]).mean()),
        )
        for name, pictures in frames.items()
        if name in clips
    }


def _thumbnail(picture: Pixels) -> NDArray[np.float32]:
    grey = Image.fromarray(picture).convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


def _is_another(moments: NDArray[np.float32], picture: Pixels, number: int) -> bool:
    """Whether a picture is nearer to another frame of the video than to a given one."""
    off = np.abs(moments - _thumbnail(picture)).mean(axis=(1, 2))
    return bool(off[number] > off.min() + SAME)


def measure_work(path: Path) -> Work:
    """Time the parts of our own reading, one thread, the second call of each."""

    def opened() -> None:
        open_container(path).close()

    def indexed() -> None:
        path.touch()  # indexes are kept for as long as a file does not change
        read_index(path)

    index = read_index(path)
    reader = FrameReader(path, index)
    pictures = [picture for _, picture in reader.read(expected_frames(index))]
    return Work(
        num_frames=len(index.shown),
        keyframes=index.keyframes.size,
        packets_read=reader.packets_read,
        frames_decoded=reader.frames_decoded,
        open_ms=_second_ms(opened),
        index_ms=_second_ms(indexed),
        frames_ms=_second_ms(lambda: list(FrameReader(path, index).read(expected_frames(index)))),
        resize_ms=_second_ms(lambda: [preprocess(one, CLIP) for one in pictures]),
    )


def _second_ms(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)
