"""Reading 12 frames, ours and others' ways.

    python benchmarks/studies/decode_libraries.py --threads 1

Every round reads the clip once with every decoder, in rotating order, each as its makers advise: the frames
at the centres of F equal parts, the file opened anew. After the timing all frames are matched with a plain
pass over the whole video; ours must be equal to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgl_bench import decode
from dgl_bench.command import Threads, benchmark, say, with_threads
from dgl_bench.decode import FRAME_SIZE, NUM_FRAMES, Clips, Pixels, Quick
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import time_paired
from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import one_line
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.video import probe

OURS = "dgl_runtime"
THUMBNAIL = (64, 36)
SAME = 0.25  # grey levels: a frame this near to the expected one's thumbnail is that frame
FORMS = {"frames": "pictures ms", "clip": "made small ms"}


@dataclass(frozen=True)
class Video:
    """A file and its picture size, pixels, which a caller may know beforehand."""

    path: Path
    width: int
    height: int

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height when the shorter side is ``FRAME_SIZE``."""
        shorter = min(self.width, self.height)
        return int(FRAME_SIZE * self.width / shorter), int(FRAME_SIZE * self.height / shorter)


Read = Callable[[Video, int], Pixels]


@dataclass(frozen=True)
class Decoder:
    """One way to read frames: the package it needs, how to get it, and how it makes frames small."""

    package: str
    install: str
    resizer: str
    frames: Read  # uint8 [F, H, W, 3] RGB
    clip: Read  # uint8 [F, 3, S, S] RGB


def centres(count: int) -> list[int]:
    """Numbers of the frames at the centres of F equal parts of ``count`` frames."""
    return [int((place + 0.5) * count / NUM_FRAMES) for place in range(NUM_FRAMES)]


def crop(pictures: Pixels) -> Pixels:
    """The centre of pictures [F, H, W, 3] as [F, 3, S, S]."""
    top, left = (round((side - FRAME_SIZE) / 2) for side in pictures.shape[1:3])
    cut = pictures[:, top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2))


def decord(video: Video, threads: int, *, small: bool) -> Pixels:
    import decord

    size = dict(zip(("width", "height"), video.resized, strict=True)) if small else {}
    reader = decord.VideoReader(str(video.path), num_threads=threads, **size)
    pictures: Pixels = reader.get_batch(centres(len(reader))).asnumpy()
    return crop(pictures) if small else pictures


def torchcodec(video: Video, threads: int, *, mode: str, small: bool) -> Pixels:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    more: dict[str, Any] = {"seek_mode": mode, "dimension_order": "NCHW" if small else "NHWC"}
    if small:
        resize = Resize(video.resized[::-1])
        more["transforms"] = [resize, CenterCrop((FRAME_SIZE, FRAME_SIZE))]
    decoder = VideoDecoder(str(video.path), num_ffmpeg_threads=threads, **more)
    made = decoder.get_frames_at(centres(decoder.metadata.num_frames)).data
    pixels: Pixels = made.contiguous().numpy()
    return pixels


def opencv(video: Video, threads: int, *, mode: str, small: bool) -> Pixels:
    """A seek before each frame, or every frame is decoded and those wanted are converted."""
    import cv2

    cv2.setNumThreads(threads)
    settings = [cv2.CAP_PROP_N_THREADS, threads]
    capture = cv2.VideoCapture(str(video.path), cv2.CAP_FFMPEG, settings)
    pictures, at = [], 0
    for number in centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        if mode == "seek":
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        for _ in range(at, number if mode == "grab" else 0):
            capture.grab()
        if number >= at or mode == "seek":  # of a short video the same frame is wanted again
            there, picture = capture.read()
            if not there:
                raise MediaError(f"OpenCV gives no frame {number} of {video.path.name}.")
            if small:
                picture = cv2.resize(picture, video.resized, interpolation=cv2.INTER_AREA)
            made = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        pictures.append(made)
        at = number + 1
    whole = np.stack(pictures)
    return crop(whole) if small else whole


def both(read: Callable[..., Pixels], **more: str) -> tuple[Read, Read]:
    return partial(read, small=False, **more), partial(read, small=True, **more)


def ours(video: Video, threads: int, *, small: bool) -> Pixels:
    return (decode.our_clip if small else decode.our_frames)(video.path, threads)


_FFMPEG = "pip install torchcodec, and FFmpeg's shared libraries"
_OPENCV = "pip install opencv-python-headless"
DECODERS = {
    OURS: Decoder("av", "", "Pillow, bicubic", *both(ours)),
    "decord2": Decoder("decord", "pip install decord2", "its own", *both(decord)),
}
for way in ("exact", "approximate"):  # these alone need torch
    reads = both(torchcodec, mode=way)
    DECODERS[f"torchcodec, {way}"] = Decoder("torchcodec", _FFMPEG, "its own, bilinear", *reads)
for way in ("seek", "grab"):
    DECODERS[f"OpenCV, {way}"] = Decoder("cv2", _OPENCV, "INTER_AREA", *both(opencv, mode=way))


@benchmark
def main(
    clips: Clips = None, rounds: int = 5, quick: Quick = False, threads: Threads = 2
) -> Report:
    """Time to read 12 frames of a clip: ours, decord2, OpenCV and torchcodec.

    Example: python benchmarks/studies/decode_libraries.py --threads 1
    """
    return compare(DECODERS, decode.clips_in(clips, quick), rounds, threads)


def compare(
    decoders: Mapping[str, Decoder], paths: Sequence[Path], rounds: int, threads: int
) -> Report:
    """Measure all installed decoders on some videos.

    Raises:
        MediaError: A video cannot be read, or our frames are not those of a plain pass.
    """
    here = {name: one for name, one in decoders.items() if find_spec(one.package)}
    missing = [f"{name}: {one.install}" for name, one in decoders.items() if name not in here]
    rows = [row for path in paths for row in rows_of(path, here, rounds, threads)]
    return Report(
        name=with_threads("decode-libraries", threads),
        title=f"Reading {NUM_FRAMES} frames of a clip, by library",
        tables=[Table(f"{NUM_FRAMES} frames, small: {FRAME_SIZE} pixels", rows)],
        settings={"frames": NUM_FRAMES, "frame_size": FRAME_SIZE, "warm_up": 0},
        packages=decode.PACKAGES,
        notes=[
            "Every call opens the file anew; files are in the page cache. Every decoder has run once before the "
            "rounds; then every round runs every decoder once, in rotating order. Wall clock, median (p10 to "
            "p90) over rounds.",
            "Ours faster: the time of the decoder divided by ours, in each round, pictures and made small.",
            "Other frames: those that show another moment than the centre of their segment, by matching with a "
            f"plain pass over the video (more than {SAME} grey levels nearer to another frame). The frames of "
            f"{OURS} are equal to the plain pass, or there would be no report.",
            f"Off: mean absolute difference of the small frames from those of {OURS}, grey levels, which are "
            "bit-equal to the bicubic resize CLIP was trained with.",
            *(f"Not installed: {one}." for one in missing),
        ],
    )


def rows_of(
    path: Path, decoders: Mapping[str, Decoder], rounds: int, threads: int
) -> Iterator[Row]:
    """All decoders on one clip, in both forms; or why one fails on it."""
    say(path.name)
    info = probe(path)
    video = Video(path, info.width, info.height)
    failures: dict[str, str] = {}
    for name, one in decoders.items():  # packages are imported, files come into memory
        try:
            one.frames(video, threads), one.clip(video, threads)
        except Exception as error:  # whatever a package of somebody else raises
            if name == OURS:
                raise
            failures[name] = f"{type(error).__name__}: {one_line(error)[:80]}"
    timed = {}
    for form in FORMS:
        calls = {
            name: partial(getattr(one, form), video, threads)
            for name, one in decoders.items()
            if name not in failures
        }
        timed[form] = time_paired(calls, rounds=rounds, warm_up=0, label=f"{path.name}, {form}")
    sights = look_at(path, timed["frames"].results, timed["clip"].results)
    for name, one in decoders.items():
        about = {"clip": path.name, "decoder": name, "made small by": one.resizer}
        if name in failures:
            yield {**about, "remark": f"failed: {failures[name]}"}
            continue
        others, off = sights[name]
        yield {
            **about,
            **{ms: timed[form].spread_ms(name) for form, ms in FORMS.items()},
            **{
                f"ours faster, {ms.removesuffix(' ms')}": timed[form].speedup(OURS, over=name)
                for form, ms in FORMS.items()
                if name != OURS
            },
            "other frames": others,
            "off, grey levels": off,
            "times_ms": [timed[form].times_ms[name] for form in FORMS],
        }


def look_at(
    path: Path, frames: Mapping[str, Pixels], clips: Mapping[str, Pixels]
) -> dict[str, tuple[int, float]]:
    """How many frames show another moment than asked for, and how far small ones are from ours, grey levels.

    Raises:
        MediaError: Our frames are not those of a plain pass.
    """
    thumbnails: list[NDArray[np.float32]] = []
    decode.require_equal(
        path, frames[OURS], each=lambda picture: thumbnails.append(_thumbnail(picture))
    )
    moments, expected = np.stack(thumbnails), decode.expected_frames(read_index(path))

    def is_another(picture: Pixels, number: int) -> bool:
        off = np.abs(moments - _thumbnail(picture)).mean(axis=(1, 2))
        return bool(off[number] > off.min() + SAME)

    return {
        name: (
            sum(is_another(one, number) for one, number in zip(pictures, expected, strict=True)),
            float(np.abs(clips[name].astype(np.int16) - clips[OURS]).mean()),
        )
        for name, pictures in frames.items()
        if name in clips
    }


def _thumbnail(picture: Pixels) -> NDArray[np.float32]:
    grey = Image.fromarray(picture).convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


if __name__ == "__main__":
    main()
