"""Random videos as people have them, every picture with a number of its own, and what ffmpeg shows of them."""

import re
import subprocess
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.helpers.odd_videos import numbered_picture

SIZE = (64, 48)
CODECS = {  # container -> codecs of pictures, codec and rate of sound
    "mp4": (("libx264", "mpeg4", "libx265"), "aac", 16_000),
    "mov": (("libx264", "mjpeg"), "aac", 16_000),
    "mkv": (("libx264", "libvpx-vp9", "mpeg4", "ffv1"), "aac", 16_000),
    "webm": (("libvpx", "libvpx-vp9"), "libopus", 48_000),
    "ts": (("libx264", "mpeg2video"), "aac", 16_000),
    "mpg": (("mpeg2video", "mpeg1video"), "mp2", 32_000),
    "avi": (("mpeg4", "mjpeg"), "mp2", 32_000),
    "flv": (("libx264", "flv1"), "aac", 16_000),
    "wmv": (("wmv2",), "wmav2", 44_100),
}
REORDERED = ("libx264", "libx265", "mpeg2video")
ORIENTED = ("mp4", "mov")
CLOCK_STARTS_ANYWHERE = ("ts", "mkv", "webm")
STILLS = ("mp4", "mkv", "mov")
CUT_ANYWHERE = ("ts", "mpg")
MATRICES = {  # as a display matrix of 3 x 3 numbers turns and mirrors
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (-1, 0, 0, -1),
    "mirrored upside down": (1, 0, 0, -1),
    "right": (0, 1, -1, 0),
    "left": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}


@dataclass(frozen=True)
class Recipe:
    """How a video is made."""

    container: str
    codec: str
    rate: Fraction  # pictures a second
    count: int
    first: int = 0  # number of its first picture
    gop: int = 12
    b_frames: int = 0
    late_s: float = 0.0  # of the pictures, behind the sound
    sound_s: float = 0.0
    still: bool = False  # a picture without a mark in front of the film
    matrix: str = "upright"
    join: str = ""  # what is done with a second recording: "" or "cat"
    cut: float = 0.0  # part of the file taken away from the beginning
    end: float = 1.0  # part of the file that is kept

    @property
    def is_damaged(self) -> bool:
        return bool(self.cut) or self.end < 1


def draw(seed: int) -> Recipe:
    """A recipe, the same for the same seed."""
    rng = np.random.default_rng(seed)

    def chance(part: float) -> bool:
        return bool(rng.random() < part)

    container = str(rng.choice(list(CODECS)))
    codec = str(rng.choice(CODECS[container][0]))
    rates = [Fraction(10), Fraction(25), Fraction(30_000, 1001)]
    if codec == "mpeg1video":
        rates = rates[1:]
    elif codec != "mpeg2video" and container != "flv":
        rates += [Fraction(1, 2), Fraction(5)]
    rate = rates[rng.integers(len(rates))]
    sound = chance(0.6)
    recipe = Recipe(
        container,
        codec,
        rate,
        count=int(rng.integers(2, 40)),
        first=int(rng.integers(0, 100)),
        gop=int(rng.integers(1, 20)),
        b_frames=int(rng.integers(0, 3)) if codec in REORDERED else 0,
        late_s=float(rng.choice([0.0, 0.4, 2.0, 5.0]))
        if sound and container not in ("avi", "wmv")
        else 0.0,
        sound_s=float(rng.uniform(0.5, 12.0)) if sound else 0.0,
        still=container in STILLS and chance(0.2),
        matrix=str(rng.choice(list(MATRICES))) if container in ORIENTED else "upright",
    )
    if chance(0.25):
        recipe = replace(recipe, join="cat")
    elif container in CUT_ANYWHERE and chance(0.3):
        recipe = replace(recipe, cut=float(rng.uniform(0.03, 0.5)))
    elif chance(0.15):
        recipe = replace(recipe, end=float(rng.uniform(0.3, 0.95)))
    return recipe


def make(path: Path, recipe: Recipe) -> Path:
    """Write the video of a recipe."""
    _write(path, recipe)
    if recipe.join == "cat":
        second = path.with_name(f"second.{recipe.container}")
        _write(second, replace(recipe, first=recipe.first + recipe.count))
        path.write_bytes(path.read_bytes() + second.read_bytes())
    content = path.read_bytes()
    unit = {"ts": 188, "mpg": 2048}.get(recipe.container, 1)
    first = int(recipe.cut * len(content)) // unit * unit
    path.write_bytes(content[first : int(recipe.end * len(content))])
    return path


def _write(path: Path, recipe: Recipe) -> None:
    options = {"movflags": "faststart"} if recipe.container in ("mp4", "mov") else {}
    kind = {"ts": "mpegts", "wmv": "asf", "mkv": "matroska", "mpg": "mpeg"}
    with av.open(
        str(path), "w", format=kind.get(recipe.container, recipe.container), options=options
    ) as output:
        still = _add_still(output) if recipe.still else None
        film = _add_film(output, recipe)
        _, codec, rate = CODECS[recipe.container]
        sound = output.add_stream(codec, rate=rate, layout="stereo") if recipe.sound_s else None
        if sound is not None:
            sound.bit_rate = 128_000
        if still is not None:
            output.mux(still.encode(_frame(np.full((96, 128, 3), 128, np.uint8), 0, Fraction(1))))
            output.mux(still.encode(None))
        late = round(recipe.late_s * recipe.rate)
        for number in range(recipe.count):
            picture = numbered_picture(recipe.first + number, *SIZE)
            picture[:16, :16] = 250  # so that all eight ways to hold it differ
            output.mux(film.encode(_frame(picture, late + number, 1 / recipe.rate)))
        if sound is not None:
            _write_sound(output, sound, recipe.sound_s, rate)
        output.mux(film.encode(None))


def _add_film(output: av.container.OutputContainer, recipe: Recipe) -> av.VideoStream:
    film = output.add_stream(recipe.codec, rate=recipe.rate)
    film.width, film.height = SIZE
    film.pix_fmt = "yuvj420p" if recipe.codec == "mjpeg" else "yuv420p"
    codec = film.codec_context
    codec.gop_size, codec.max_b_frames, codec.thread_count = recipe.gop, recipe.b_frames, 1
    codec.time_base = 1 / recipe.rate
    if recipe.codec == "libx264":
        codec.options = {"preset": "ultrafast", "sc_threshold": "0"}
    elif recipe.codec == "libx265":
        codec.options = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}
    elif recipe.codec.startswith("libvpx"):
        codec.options = {"deadline": "realtime", "cpu-used": "8"}
    if recipe.matrix != "upright":
        a, b, c, d = (number << 16 for number in MATRICES[recipe.matrix])
        film.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    return film


def _add_still(output: av.container.OutputContainer) -> av.VideoStream:
    still = output.add_stream("mjpeg", rate=25)
    still.width, still.height, still.pix_fmt = 128, 96, "yuvj420p"
    return still


def _frame(picture: np.ndarray, pts: int, time_base: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.pts, frame.time_base = pts, time_base
    return frame


def _write_sound(
    output: av.container.OutputContainer, sound: av.AudioStream, seconds: float, rate: int
) -> None:
    sound.codec_context.open(strict=False)
    size = sound.codec_context.frame_size or 1024
    resampler = av.AudioResampler(sound.codec_context.format, "stereo", rate, frame_size=size)
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, int(seconds * rate)), np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        output.mux(sound.encode(part))
    output.mux(sound.encode(None))


def opens_in_ffmpeg(path: Path) -> bool:
    """Whether ffmpeg takes it for a video; some of less than two kilobytes it does not."""
    return subprocess.run(["ffprobe", "-v", "quiet", str(path)], check=False).returncode == 0


def shown_by_ffmpeg(path: Path, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """What ffmpeg shows of a stream: seconds of a player's clock [M] and pictures, uint8 [M, H, W, 3]."""
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "info",
        "-copyts",
        "-i",
        str(path),
        "-map",
        f"0:{stream}",
    ]
    command += [
        "-fps_mode",
        "passthrough",
        "-vf",
        "showinfo",
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
        "-",
    ]
    # Where no sound is asked for, ffmpeg counts from the first picture.
    with_sound = [*command, "-map", "0:a?", "-c", "copy", "-f", "null", "/dev/null"]
    for asked in (with_sound, command):  # sound of which it does not know the rate it does not copy
        done = subprocess.run(asked, capture_output=True, check=False)
        said = done.stderr.decode(errors="replace")
        if found := re.findall(r"pts_time:\s*(\S+).*? s:(\d+)x(\d+)", said):
            break
    if not found:
        return np.empty(0), np.empty((0, 0, 0, 3), np.uint8)
    width, height = int(found[0][1]), int(found[0][2])
    begins = re.search(r"Duration: \S+ start: (\S+),", said)
    zero_s = max(float(begins[1]), 0.0) if begins else 0.0
    seconds = np.array([np.nan if at == "NOPTS" else float(at) for at, *_ in found])
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return seconds[: len(pictures)] - zero_s, pictures
