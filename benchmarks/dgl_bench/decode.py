"""dgl-bench decode: F frames of a clip, as pictures and made small, and where the time goes.

The file is opened anew in every call. After the timing the frames are compared with those of a plain pass
over the whole video: they must be equal. Others' decoders: benchmarks/studies/decode_libraries.py.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from dgl_bench.command import Threads, benchmark, say, with_threads
from dgl_bench.made_clips import MADE, QUICK, fetch_real_clips, make_clips
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import time_paired
from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import open_container
from dgl_runtime.media.frame_reader import FrameReader
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.side_by_side import read_frames
from dgl_runtime.media.video import Span, frame_times, preprocess, read_clips

Pixels = NDArray[np.uint8]
NUM_FRAMES, FRAME_SIZE = 12, 224
WARM_UP = 1
PACKAGES = ("av", "pillow", "decord2", "torchcodec", "opencv-python-headless")

Clips = Annotated[
    Path | None, "Folder of the clips, 300 MB, made unless there; default: among the caches."
]
Quick = Annotated[bool, "Two small clips only."]


@benchmark
def decode(
    clips: Clips = None, rounds: int = 5, quick: Quick = False, threads: Threads = 2
) -> Report:
    """Time to read 12 frames of a clip, and what it is spent on.

    Example: dgl-bench decode --threads 1
    """
    rows, work = [], []
    for path in clips_in(clips, quick):
        say(path.name)
        calls = {
            "pictures ms": partial(our_frames, path, threads),
            "made small ms": partial(our_clip, path, threads),
        }
        paired = time_paired(calls, rounds=rounds, warm_up=WARM_UP, label=path.name)
        require_equal(path, paired.results["pictures ms"])
        spreads = {name: paired.spread_ms(name) for name in calls}
        rows.append({"clip": path.name, **spreads, "times_ms": paired.times_ms})
        work.append(work_on(path))
    return Report(
        name=with_threads("decode", threads),
        title=f"Reading {NUM_FRAMES} frames of a clip",
        tables=[
            Table(f"{NUM_FRAMES} frames of a clip", rows),
            Table("Where the time goes, one thread", work),
        ],
        settings={"frames": NUM_FRAMES, "frame_size": FRAME_SIZE, "warm_up": WARM_UP},
        packages=PACKAGES,
        notes=[
            "Every call opens the file anew; files are in the page cache. Wall clock, median (p10 to p90) "
            "over rounds. The pictures are equal to a plain pass over the video, or there were no report.",
            "read: packets given to the decoder; decoded: frames that came out, the others were skipped or "
            "dropped at a seek. open: part of index and of frames. index: read once a file.",
        ],
    )


def clips_in(folder: Path | None, quick: bool) -> list[Path]:
    """The clips that are read: made ones, and three real ones unless ``quick``."""
    folder = folder or cache_folder() / "bench_clips"
    paths = make_clips(folder, QUICK if quick else MADE)
    return paths if quick else paths + fetch_real_clips(folder)


def expected_frames(index: PacketIndex) -> list[int]:
    """Numbers of the frames on display at the centres of F equal parts of a video."""
    times_s = frame_times(Span(0, index.duration_s), NUM_FRAMES, None)
    return [int(number) for number in index.frames_at(times_s)]


def our_frames(path: Path, threads: int) -> Pixels:
    """Pictures, uint8 [F, H, W, 3] RGB."""
    index = _anew(path)
    wanted = expected_frames(index)
    read = read_frames(path, index, wanted, lambda picture: picture, threads=threads)
    return np.stack([picture for _, picture in read])


def our_clip(path: Path, threads: int) -> Pixels:
    """Pictures made small, uint8 [F, 3, S, S] RGB."""
    span = Span(0, _anew(path).duration_s)
    return next(read_clips(path, [span], NUM_FRAMES, FRAME_SIZE, threads=threads))


def _anew(path: Path) -> PacketIndex:
    """The packet index, read again: indexes are kept for as long as a file does not change."""
    os.utime(path)
    return read_index(path)


def require_equal(
    path: Path, frames: Pixels, *, each: Callable[[Pixels], None] | None = None
) -> None:
    """Compare our pictures with a plain pass over the whole video, of which ``each`` gets all.

    Raises:
        MediaError: They differ.
    """
    index = read_index(path)
    expected = expected_frames(index)
    wanted = {}
    for number, picture in FrameReader(path, index, may_skip=False).read(range(len(index.shown))):
        if each is not None:
            each(picture)
        if number in set(expected):
            wanted[number] = picture
    if not np.array_equal(frames, np.stack([wanted[number] for number in expected])):
        raise MediaError(f"{path}: our frames differ from a plain pass. Their time means nothing.")


def work_on(path: Path) -> Row:
    """Time the parts of our own reading, one thread, the second call of each."""
    index = read_index(path)
    reader = FrameReader(path, index)
    pictures = [picture for _, picture in reader.read(expected_frames(index))]
    return {
        "clip": path.name,
        "frames": len(index.shown),
        "keyframes": int(index.keyframes.size),
        "read": reader.packets_read,
        "decoded": reader.frames_decoded,
        "open ms": _second_ms(lambda: open_container(path).close()),
        "index ms": _second_ms(lambda: _anew(path)),
        "frames ms": _second_ms(
            lambda: list(FrameReader(path, index).read(expected_frames(index)))
        ),
        "resize ms": _second_ms(lambda: [preprocess(one, FRAME_SIZE) for one in pictures]),
    }


def _second_ms(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)
