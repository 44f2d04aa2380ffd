"""Make small videos, ordinary and odd, in which every frame carries its own number."""

import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48


def ffmpeg(*arguments):
    """Run ffmpeg; without it the test is skipped."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Two grey halves that spell a number below 256, uint8 [H, W, 3]."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2] = 8 + 16 * (number % 16)
    picture[:, width // 2 :] = 8 + 16 * (number // 16)
    return picture


def number_of(frame: np.ndarray) -> int:
    """The number a decoded frame [3, S, S] carries."""
    quarter = frame.shape[2] // 4
    low, high = frame[:, :, :quarter].mean(), frame[:, :, -quarter:].mean()
    return round((low - 8) / 16) + 16 * round((high - 8) / 16)


def numbers_of(clip: np.ndarray) -> list[int]:
    """The numbers the frames of a clip [F, 3, S, S] carry."""
    return [number_of(frame) for frame in clip]


def write_video(
    path: Path,
    num_frames: int = 20,
    *,
    codec: str = "mpeg4",
    rate: int = 10,
    pts: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    gop: int = 12,
    b_frames: int = 0,
    rotation: int = 0,
    container: str | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    audio_packets: Sequence[bytes] = (),
    audio_first: bool = False,
    pictures: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write a numbered video.

    ``pts`` are display times in units of 1 / ``rate`` seconds; ``audio_packets`` are muxed as the
    packets of an AAC stream whatever they hold.
    """
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, container_options=options or {}) as output:
        output.metadata.update(metadata or {})
        audio = output.add_stream("aac", rate=16000) if audio_first else None
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.options = {
                "sc_threshold": "0"
            }  # keyframes only where ``gop`` says
        elif codec == "libx265":
            stream.codec_context.options = {"x265-params": "log-level=none:pools=1"}
        if rotation:
            stream.set_display_rotation(rotation)
        if audio_packets and audio is None:
            audio = output.add_stream("aac", rate=16000)
        for i in range(num_frames):
            picture = numbered_picture(i, width, height) if pictures is None else pictures[i]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for i, payload in enumerate(audio_packets):
            packet = av.Packet(payload)
            packet.stream, packet.pts, packet.dts = audio, 1024 * i, 1024 * i
            packet.time_base = Fraction(1, 16000)
            output.mux(packet)
    return path


def write_audio(path: Path, codec: str, *, cover: bool = False) -> Path:
    """Write half a second of silence, with an attached picture if wanted."""
    with av.open(str(path), "w") as output:
        audio = output.add_stream(codec, rate=16000, layout="mono")
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(numbered_picture(0), format="rgb24")
            output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        for i in range(8):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    return path


def write_video_with_tones(path: Path, tones: Sequence[float], seconds: int) -> Path:
    """Write a numbered video with one tone after another, Hz, each for some seconds."""
    rate, num_frames = 16_000, 10 * seconds * len(tones)
    times = np.arange(seconds * rate) / rate
    sound = np.concatenate([np.sin(2 * np.pi * tone * times) for tone in tones])
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = output.add_stream("aac", rate=rate, layout="mono")
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(pictures.encode(frame))
        for first in range(0, len(sound), 1024):
            samples = sound[None, first : first + 1024].astype(np.float32)
            part = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            part.sample_rate, part.pts = rate, first
            output.mux(audio.encode(part))
        for stream in (pictures, audio):
            output.mux(stream.encode(None))
    return path


def replace_bytes(path: Path, old: bytes, new: bytes) -> Path:
    """Overwrite every occurrence of some bytes in a file with as many others."""
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def damage(path: Path, start: float, end: float) -> Path:
    """Overwrite a part of a file, given as fractions of its length, with noise."""
    content = bytearray(path.read_bytes())
    first, last = int(start * len(content)), int(end * len(content))
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(bytes(content))
    return path


def blank_first_packet(path: Path) -> Path:
    """Overwrite the first packet of pictures with zeros."""
    with av.open(str(path)) as container:
        packet = next(container.demux(video=0))
        place, size = packet.pos, packet.size
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes(size) + content[place + size :])
    return path


def truncate(path: Path, part: float) -> Path:
    """Keep only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    return path
