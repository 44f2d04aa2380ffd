"""dgl-bench decode: F frames of a clip, as pictures and made small, and where the time goes.

The file is opened anew in every call. After the timing all frames are matched with a plain pass over the
whole video: ours must be equal to it. Others' decoders: benchmarks/studies/decode_libraries.py.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgl_bench.command import Threads, benchmark, say, with_threads
from dgl_bench.made_clips import MADE, QUICK, fetch_real_clips, make_clips
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import Paired, time_paired
from dgl_runtime.bundle.input_spec import clip_frames
from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import one_line, open_container
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.side_by_side import read_frames
from dgl_runtime.media.video import Span, VideoInfo, frame_times, probe, read_clips

Pixels = NDArray[np.uint8]
NUM_FRAMES, FRAME_SIZE = 12, 224
CLIP = clip_frames(NUM_FRAMES, FRAME_SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OURS = "dgl_runtime"
FORMS = {"frames": "pictures ms", "clip": "made small ms"}
THUMBNAIL = (64, 36)
SAME = 0.25  # grey levels: a frame this near to the expected one's thumbnail is that frame

Clips = Annotated[
    Path | None, "Folder of the clips, 300 MB, made unless there; default: among the caches."
]
Quick = Annotated[bool, "Two small clips only."]


Read = Callable[[VideoInfo, int], Pixels]
"""A video, whose size a caller may know beforehand, and threads."""


@dataclass(frozen=True)
class Decoder:
    """One way to read frames: the package it needs, how to get it, and how it makes frames small."""

    package: str
    install: str
    resizer: str
    frames: Read  # uint8 [F, H, W, 3] RGB
    clip: Read  # uint8 [F, 3, S, S] RGB


def _our_frames(video: VideoInfo, threads: int) -> Pixels:
    index = _anew(video.path)
    wanted = _expected_frames(index)
    read = read_frames(video.path, index, wanted, lambda picture: picture, threads=threads)
    return np.stack([picture for _, picture in read])


def _our_clip(video: VideoInfo, threads: int) -> Pixels:
    span = Span(0, _anew(video.path).duration_s)
    return next(read_clips(video.path, [span], CLIP, threads=threads))


def _anew(path: Path) -> PacketIndex:
    """The packet index, read again: indexes are kept for as long as a file does not change."""
    os.utime(path)
    return read_index(path)


OUR_OWN = {OURS: Decoder("av", "", "Pillow, bicubic", _our_frames, _our_clip)}


@benchmark
def decode(
    clips: Clips = None, rounds: int = 5, quick: Quick = False, threads: Threads = 2
) -> Report:
    """Time to read 12 frames of a clip, and what it is spent on.

    Example: dgl-bench decode --threads 1
    """
    return compare("decode", OUR_OWN, clips_in(clips, quick), rounds, threads)


def clips_in(folder: Path | None, quick: bool) -> list[Path]:
    """The clips that are read: made ones, and three real ones unless ``quick``."""
    folder = folder or cache_folder() / "bench_clips"
    paths = make_clips(folder, QUICK if quick else MADE)
    return paths if quick else paths + fetch_real_clips(folder)


def compare(
    name: str, decoders: Mapping[str, Decoder], paths: Sequence[Path], rounds: int, threads: int
) -> Report:
    """Measure all installed decoders, ours among them, on some videos."""
    here = {one: kind for one, kind in decoders.items() if find_spec(kind.package)}
    missing = [
        f"Not installed, {one}: {decoders[one].install}." for one in decoders if one not in here
    ]
    return Report(
        name=with_threads(name, threads),
        title=f"Reading {NUM_FRAMES} frames of a clip",
        tables=[
            Table(
                f"{NUM_FRAMES} frames; small: {FRAME_SIZE} pixels",
                [row for path in paths for row in _rows(path, here, rounds, threads)],
            ),
            Table("Where our time goes, one thread", [_work_on(path) for path in paths]),
        ],
        settings={"frames": NUM_FRAMES, "frame_size": FRAME_SIZE, "warm_up": 0},
        packages=("av", "pillow", "decord2", "torchcodec", "opencv-python-headless"),
        notes=[
            "Every call opens the file anew; files are in the page cache. All take turns, each right after a "
            "call of its own that is not timed. Wall clock, median (p10 to p90) over rounds.",
            "Ours faster: the decoder's time divided by ours, in each round; pictures, and made small.",
            "Other frames: those that show another moment than the centre of their segment, by matching "
            f"with a plain pass over the video (more than {SAME} grey levels nearer to another frame). Ours "
            "are equal to the plain pass, or there were no report.",
            "Off: mean absolute difference of the small frames from ours, grey levels, which are bit-equal "
            "to the bicubic resize CLIP was trained with.",
            "read: packets given to our decoder; decoded: frames that came out, the others were skipped or "
            "dropped at a seek. open: part of index and of frames. index: read once a file.",
            *missing,
        ],
    )


def _rows(path: Path, decoders: Mapping[str, Decoder], rounds: int, threads: int) -> Iterator[Row]:
    """All decoders on one clip, in both forms; or why one fails on it."""
    say(path.name)
    video = probe(path)
    failures: dict[str, str] = {}
    for name, one in decoders.items():  # packages are imported, files come into memory
        try:
            one.frames(video, threads), one.clip(video, threads)
        except Exception as error:  # whatever a package of somebody else raises
            if name == OURS:
                raise
            failures[name] = f"failed: {type(error).__name__}: {one_line(error)[:80]}"
    timed: dict[str, Paired[Pixels]] = {}
    for form, ms in FORMS.items():
        reads = {name: getattr(one, form) for name, one in decoders.items() if name not in failures}
        calls = {name: partial(read, video, threads) for name, read in reads.items()}
        timed[ms] = time_paired(
            calls, rounds=rounds, warm_up=0, settle=1, label=f"{path.name}, {form}"
        )
    frames, clips = (one.results for one in timed.values())
    others = other_frames(path, frames)
    for name, one in decoders.items():
        row: Row = {"clip": path.name, "decoder": name, "small by": one.resizer}
        row |= {"remark": failures.get(name)}
        for ms, paired in timed.items() if name not in failures else ():
            row[ms] = paired.spread_ms(name)
            row[f"ours faster, {ms[:-3]}"] = (
                None if name == OURS else paired.speedup(OURS, over=name)
            )
        if name not in failures:
            row["other frames"] = others[name]
            row["off, grey levels"] = float(np.abs(clips[name].astype(int) - clips[OURS]).mean())
            row["times_ms"] = [paired.times_ms[name] for paired in timed.values()]
        yield row


def other_frames(path: Path, frames: Mapping[str, Pixels]) -> dict[str, int]:
    """How many pictures of each decoder show another moment than asked for.

    Raises:
        MediaError: Ours are not those of a plain pass over the whole video.
    """
    index = read_index(path)
    expected, wanted, thumbnails = _expected_frames(index), {}, []
    for number, picture in FrameReader(path, index, may_skip=False).read(range(len(index.shown))):
        thumbnails.append(_thumbnail(picture))
        if number in set(expected):
            wanted[number] = picture
    if not np.array_equal(frames[OURS], np.stack([wanted[number] for number in expected])):
        raise MediaError(f"{path}: our frames differ from a plain pass. Their time means nothing.")
    moments = np.stack(thumbnails)

    def is_another(picture: Pixels, number: int) -> bool:
        off = np.abs(moments - _thumbnail(picture)).mean(axis=(1, 2))
        return bool(off[number] > off.min() + SAME)

    return {
        name: sum(is_another(*pair) for pair in zip(pictures, expected, strict=True))
        for name, pictures in frames.items()
    }


def _thumbnail(picture: Pixels) -> NDArray[np.float32]:
    grey = Image.fromarray(picture).convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


def _expected_frames(index: PacketIndex) -> list[int]:
    """Numbers of the frames on display at the centres of F equal parts of a video."""
    times_s = frame_times(Span(0, index.duration_s), NUM_FRAMES, None)
    return [int(number) for number in index.frames_at(times_s)]


def _work_on(path: Path) -> Row:
    """Time the parts of our own reading, one thread, the second call of each."""
    index = read_index(path)
    reader, wanted = FrameReader(path, index), _expected_frames(index)
    pictures = [picture for _, picture in reader.read(wanted)]
    return {
        "clip": path.name,
        "frames": len(index.shown),
        "keyframes": int(index.keyframes.size),
        "read": reader.packets_read,
        "decoded": reader.frames_decoded,
        "open ms": _second_ms(lambda: open_container(path).close()),
        "index ms": _second_ms(lambda: _anew(path)),
        "frames ms": _second_ms(lambda: list(FrameReader(path, index).read(wanted))),
        "resize ms": _second_ms(lambda: [preprocess(one, CLIP) for one in pictures]),
    }


def _second_ms(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)
