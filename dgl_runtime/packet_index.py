"""Open a video and read the packet index of its picture stream: when each frame is shown.

Every time comes from the packets, because the frame rate and frame count that a container states
are wrong in too many files. PyAV is imported on use.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dgl_runtime.errors import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from av import Packet, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray

_FORMATS = ",".join(
    "3g2 3gp aac apng asf av1 avi bmp_pipe dv flac flv gif gxf h264 hevc ivf j2k_pipe jpeg_pipe "
    "jpegxl_pipe m4v matroska mjpeg mov mp3 mpeg mpegts mpegvideo mxf nut obu ogg png_pipe ppm_pipe rm "
    "tiff_pipe wav webm webp_pipe wtv yuv4mpegpipe".split()
)
"""Containers that hold their pictures themselves. Playlists of any kind (concat, hls, dash, sdp) are left out:
they make FFmpeg open other files, which whoever wrote the playlist chose."""

_DEFAULT_STEP_S = 1 / 25
"""Time between frames when neither the packets nor the stream say anything about time."""

_MISSING_FROM_S, _MISSING_PART = 1.0, 0.02
"""A file ends early if more than this is missing: seconds, and of what is there."""

_SAME_S = 1e-9
"""Seconds: smaller differences are rounding noise, far below any tick."""


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a picture stream say: N packets in file order that show M frames.

    Attributes:
        times: Display time of each packet, ticks, int64 [N].
        decode_times: Decode time of each packet, ticks, int64 [N]; its display time if not given.
        shown: Display times of the frames, ascending and distinct, ticks, int64 [M].
        keyframes: Positions of the keyframes in file order, int64 [K].
        tick_s: Seconds per tick.
        duration_s: From the first frame to the end of the last one, seconds.
        is_counted: The packets do not say when a frame is shown: the n-th frame that comes out
            of the decoder counts as shown at the n-th time, which rules out seeking.
        stated_s: What the file says of its duration, seconds; None: nothing that can be relied on.
    """

    times: NDArray[np.int64]
    decode_times: NDArray[np.int64]
    shown: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    tick_s: float
    duration_s: float
    is_counted: bool
    stated_s: float | None

    @property
    def missing(self) -> str | None:
        """What a file that ends early lacks, in words; None: nothing."""
        lost_s = (self.stated_s or 0.0) - self.duration_s
        if lost_s <= max(_MISSING_FROM_S, _MISSING_PART * self.duration_s):
            return None
        return (
            f"ends after {self.duration_s:.1f} s of the {self.stated_s:.1f} s it states: the rest is missing, "
            "or its header is wrong. Copy or download it again."
        )

    def frames_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number, in order of display, of the frame on display at each time, int64 [F]."""
        shown_s = (self.shown - self.shown[0]) * self.tick_s
        shown_by_then = np.searchsorted(shown_s, times_s + _SAME_S, side="right")
        return np.maximum(shown_by_then - 1, 0).astype(np.int64)

    def second(self, ticks: int) -> float:
        """Seconds from the first frame."""
        return (ticks - int(self.shown[0])) * self.tick_s

    def keyframes_before(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position in file order of the last keyframe shown at or before each time, else 0."""
        if not self.keyframes.size:
            return np.zeros_like(ticks)
        order = np.argsort(self.times[self.keyframes], kind="stable")
        usable = np.searchsorted(self.times[self.keyframes[order]], ticks, side="right")
        latest = np.concatenate([[0], np.maximum.accumulate(self.keyframes[order])])
        return latest[usable].astype(np.int64)

    def positions_at(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position in file order of the last packet with each of some display times."""
        order = np.argsort(self.times, kind="stable")
        return order[np.searchsorted(self.times[order], ticks, side="right") - 1]

    def position_of(self, packet: Packet[VideoStream]) -> int | None:
        """Position of a packet in file order; None if its time is not there exactly once."""
        found = np.flatnonzero(self.times == packet_time(packet))
        return int(found[0]) if found.size == 1 else None


def read_index(path: Path) -> PacketIndex:
    """Read the packet index by demuxing the picture stream; nothing is decoded.

    The index ends where the file can no longer be read, so a truncated file is as long as what
    is left of it. The last few indexes are kept: to probe and then to read costs one pass.

    Raises:
        MediaError: If the file is missing, unreadable, empty, not a video or without pictures.
    """
    try:
        is_there, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
        state = path.stat() if is_there else None
    except (OSError, ValueError) as fault:
        raise MediaError(f"{path} cannot be read ({one_line(fault)}). Check the path.") from fault
    if state is None:
        raise MediaError(f"{path} does not exist. Check the path.")
    if is_folder:
        raise MediaError(f"{path} is a folder, expected a video file. Name a file inside it.")
    if not is_file:
        raise MediaError(f"{path} is a device or a pipe, expected a video file. Copy it to a file.")
    if state.st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes), expected a video. Copy or download it again.")
    try:
        path.open("rb").close()
    except OSError as fault:
        raise MediaError(
            f"{path} may not be read ({one_line(fault)}). Change its permissions."
        ) from fault
    return _read_index(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_index(path: Path, size_bytes: int, modified_ns: int) -> PacketIndex:
    """Read the index; size and time of change only tell one state of the file from another."""
    with open_stream(path, threads=1) as (container, stream):
        packets = [
            (
                packet.pts,
                packet.dts,
                max(packet.duration or 0, 0),
                packet.is_keyframe,
                packet.is_discard,
            )
            for packet in frame_packets(container, stream)
        ]
        tick_s = float(stream.time_base or 1)
        rate = stream.guessed_rate
        stated_s = _stated_s(container, stream)
        # AVI numbers its chunks in file order; where the codec reorders frames, that is not pts.
        may_lie = container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
    if all(packet[-1] for packet in packets):
        raise MediaError(f"{path} has a picture stream without frames. Copy or download it again.")
    pts, dts, durations_, keys, hidden = zip(*packets, strict=True)
    durations = np.array(durations_, np.int64)
    if not durations.any():
        step_s = float(1 / rate) if rate else _DEFAULT_STEP_S
        durations += max(1, round(step_s / tick_s))
    step = int(np.median(durations[durations > 0]))
    times = _fill(pts, dts, step)
    has_no_pts = all(stamp is None for stamp in pts)
    shown = np.unique(times[~np.array(hidden, np.bool_)])
    last = _last_step(times, durations, shown) or step
    return PacketIndex(
        times=times,
        decode_times=_fill(dts, pts, step),
        shown=shown,
        keyframes=np.flatnonzero(keys),
        tick_s=tick_s,
        duration_s=(int(shown[-1]) - int(shown[0]) + last) * tick_s,
        is_counted=has_no_pts or (may_lie and bool(np.all(np.diff(times) > 0))),
        stated_s=stated_s,
    )


def _stated_s(container: InputContainer, stream: VideoStream) -> float | None:
    """The duration of the picture stream, or of a file that holds nothing else."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / 1_000_000  # microseconds
    return None


def _fill(
    stamps: tuple[int | None, ...], instead: tuple[int | None, ...], step: int
) -> NDArray[np.int64]:
    """Ticks of each packet: its stamp, else the other one, else one step after the last."""
    filled: list[int] = []
    for stamp, other in zip(stamps, instead, strict=True):
        following = filled[-1] + step if filled else 0
        filled.append(next((given for given in (stamp, other) if given is not None), following))
    return np.array(filled, np.int64)


def _last_step(
    times: NDArray[np.int64], durations: NDArray[np.int64], shown: NDArray[np.int64]
) -> int:
    """Ticks the last frame is shown: as its packet says, if the others say the truth.

    Matroska, for one, gives every packet the duration that the stated frame rate implies.
    """
    steps = np.diff(shown)
    order = np.argsort(times, kind="stable")
    said = durations[order][np.searchsorted(times[order], shown)]
    if steps.size == 0 or (said[-1] > 0 and np.mean(np.abs(said[:-1] - steps) <= 1) > 0.5):
        return int(said[-1])
    return int(np.median(steps))


def open_container(path: Path) -> InputContainer:
    """Open a file that holds its own pictures or sound.

    Raises:
        MediaError: It does not.
    """
    import av

    try:
        # "file:" keeps a colon in a file name from being read as a protocol.
        return av.open(
            f"file:{path}",
            mode="r",
            metadata_errors="ignore",
            options={"format_whitelist": _FORMATS},
        )
    except media_faults() as fault:
        raise MediaError(
            f"{path} is not a video or is damaged ({one_line(fault)}). "
            "Play it to check, and copy or download it again."
        ) from fault


@contextmanager
def open_stream(path: Path, threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video at its first packet.

    The picture stream is the first one that is no attached picture (cover art).

    Args:
        path: The video.
        threads: Decoder threads, 1 or more.

    Yields:
        The container and its picture stream.

    Raises:
        MediaError: If it cannot be opened, or no stream of pictures can be decoded.
    """
    from av.stream import Disposition

    with open_container(path) as container:
        pictures = [
            stream
            for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not pictures:
            found = [s.type.replace("video", "cover picture") for s in container.streams]
            raise MediaError(
                f"{path} has no picture stream, only: {', '.join(found) or 'nothing'}. "
                "Give a file with moving pictures, or leave it out."
            )
        decodable = [stream for stream in pictures if stream.codec_context is not None]
        if not decodable:
            raise MediaError(
                f"{path} has pictures in a codec that PyAV cannot decode, or is damaged. "
                "Play it to check, and convert it to H.264."
            )
        stream = decodable[0]
        stream.thread_count = threads
        stream.thread_type = "FRAME"
        yield container, stream


def frame_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream that hold a frame, up to where the file can be read.

    Packets of no bytes ("show the last frame again") are left out: a decoder takes one as the
    end of the stream.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except media_faults():
            return
        if packet.size:
            yield packet


def packet_time(packet: Packet[VideoStream]) -> int | None:
    """When the frame of a packet is shown, ticks; its decode time if it does not say."""
    return packet.dts if packet.pts is None else packet.pts


def media_faults() -> tuple[type[Exception], ...]:
    """Whatever PyAV raises for a file that is not as it should be."""
    from av.error import FFmpegError

    return (FFmpegError, OSError, ValueError, EOFError, ArithmeticError, LookupError, RuntimeError)


def one_line(fault: BaseException) -> str:
    """What a fault says, on one line and without repeating the path."""
    text = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
    return " ".join(str(text).split())
