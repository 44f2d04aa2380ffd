"""One pass over a file's packets: which of its streams is the film, and what each packet of it says."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.container import (
    End,
    media_faults,
    open_container,
    open_stream,
    packet_time,
    packets_of,
    picture_streams,
)
from dgl_runtime.media.encryption import is_scrambled_behind, require_open_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from av import Packet, VideoStream
    from av.container import InputContainer
    from numpy.typing import NDArray

NOT_GIVEN = np.iinfo(np.int64).min
"""In place of a time stamp that a packet does not have."""

_DEFAULT_STEP_S = 1 / 25
"""Time between frames when neither the packets nor the stream say anything about time."""

_SAME_S = 0.001
"""Durations this near are one, in another unit."""

_MOST_UNDECODED = 3000
"""Packets that are tried until a frame comes out: two minutes at 25 frames a second."""


@dataclass
class Packets:
    """What the packets of one stream say, in file order; times in ticks."""

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)
    key_places: array[int] = field(
        default_factory=lambda: array("q")
    )  # byte, size; of each keyframe
    hidden: bytearray = field(default_factory=bytearray)  # by an edit list
    end: int = 0  # bytes of the file up to the end of the last one
    last_but_one: int = 0  # bytes up to the end of the one before it

    def add(self, packet: Packet[Any]) -> None:
        """Take down one packet."""
        self.pts.append(NOT_GIVEN if packet.pts is None else packet.pts)
        self.dts.append(NOT_GIVEN if packet.dts is None else packet.dts)
        self.durations.append(max(packet.duration or 0, 0))
        self.keys.append(packet.is_keyframe)
        if packet.is_keyframe:
            self.key_places.extend(place_of(packet))
        self.hidden.append(packet.is_discard)
        if (end := (packet.pos or 0) + packet.size) > self.end:
            self.last_but_one, self.end = self.end, end


def place_of(packet: Packet[Any]) -> tuple[int, int]:
    """The byte of the file at which a packet begins (-1: the container does not say) and its size."""
    return -1 if packet.pos is None else packet.pos, packet.size


@dataclass(frozen=True)
class Pass:
    """What one pass over a file found.

    Attributes:
        path: The file.
        stream: Number of the picture stream in the container.
        packets: Those of that stream.
        tick_s: Seconds per tick.
        step_s: From frame to frame, seconds, as the file states it.
        stated_s: How long the picture stream lasts, seconds, as the file states it of this stream alone.
        all_s: How long the longest stream lasts, seconds, as the file states it.
        begins_s: Where the first stream begins, seconds of the file's clock; None: that is not known.
        may_jump: The clock of this format may jump forward.
        may_lie: Times may be those of decoding, although frames are shown in another order.
        end: How the reading ended.
        remark: That there were several picture streams, in words.
    """

    path: Path
    stream: int
    packets: Packets
    tick_s: float
    step_s: float
    stated_s: float | None
    all_s: float | None
    begins_s: float | None
    may_jump: bool
    may_lie: bool
    end: End
    remark: str | None


def read_pass(path: Path) -> Pass:
    """Demux a file's picture streams; nothing is decoded.

    Raises:
        MediaError: It is not a video or has no pictures.
    """
    from av.format import Flags

    with open_container(path) as container:
        require_open_pictures(path, container)
        films, end = picture_streams(path, container), End()
        packets = {film.index: Packets() for film in films}
        for packet in packets_of(container, films, end):
            packets[packet.stream_index].add(packet)
        film = _film(films, packets)
        stated_s, all_s = _stated(container, film)
        own, rate, tick_s = packets[film.index], film.guessed_rate, float(film.time_base or 1)
        if end.fault is None and is_scrambled_behind(path, container, own.end):
            end.fault = "what follows is encrypted"
        if all(own.hidden):
            raise MediaError(
                f"{path} has a picture stream without frames. Copy or download it again."
            )
        return Pass(
            path=path,
            stream=film.index,
            packets=own,
            tick_s=tick_s,
            step_s=float(1 / rate) if rate else _DEFAULT_STEP_S,
            stated_s=stated_s,
            all_s=all_s,
            begins_s=_begins_s(path, container),
            may_jump=bool(container.format.flags & cast("int", Flags.ts_discont.value)),
            # AVI numbers its chunks in file order; where the codec reorders frames, that is not pts.
            may_lie=container.format.name == "avi" and film.codec_context.has_b_frames,
            end=end,
            remark=_remark(films, film),
        )


def _stated(container: InputContainer, film: VideoStream) -> tuple[float | None, float | None]:
    """How long the picture stream and the longest stream last, seconds, as the file states it."""
    all_s = None if container.duration is None else container.duration / 1_000_000
    if film.duration is None or film.time_base is None:
        return None, all_s
    stated_s = float(film.duration * film.time_base)
    # Where a container states one duration for all streams, FFmpeg gives it to each.
    is_own = all_s is None or abs(stated_s - all_s) > _SAME_S
    return stated_s if is_own else None, all_s


def _begins_s(path: Path, container: InputContainer) -> float | None:
    # An avi counts from 0 in order of decoding, whatever is shown first.
    if container.format.name == "avi":
        return None
    begins = cast("int | None", container.start_time)
    if begins is not None:
        return begins / 1_000_000
    # FFmpeg looks at the first packets and does not say where these are reordered pictures alone.
    heard, _ = read_others(path)
    return float(heard.min()) if heard.size else 0.0


def _film(films: Sequence[VideoStream], packets: dict[int, Packets]) -> VideoStream:
    """What a player would show; one picture beside others that move is a still without a mark."""
    moving = [film for film in films if len(packets[film.index].pts) > 1]
    return (moving or films)[0]


def _remark(films: Sequence[VideoStream], film: VideoStream) -> str | None:
    if len(films) == 1:
        return None
    codec = film.codec_context
    return (
        f"has {len(films)} picture streams; number {film.index} ({codec.name}, {codec.width} x "
        f"{codec.height}) is read"
    )


def read_others(path: Path) -> tuple[NDArray[np.float64], float]:
    """When something is heard in a file, and where all of it but its pictures ends.

    Returns:
        The times of all packets of sound, float64, and the end of the last packet of sound or text; seconds
        of the file's clock.
    """
    heard, ends_s = array("d"), 0.0
    with open_container(path) as container:
        others = [stream for stream in container.streams if stream.type != "video"]
        for packet in packets_of(container, others) if others else ():
            if (ticks := packet_time(packet)) is None or packet.time_base is None:
                continue
            ends_s = max(ends_s, float((ticks + (packet.duration or 0)) * packet.time_base))
            if packet.stream.type == "audio":
                heard.append(float(ticks * packet.time_base))
    return np.array(heard), ends_s


def last_byte(path: Path) -> int:
    """Bytes of a file up to the end of the last packet of any stream."""
    packets = Packets()
    with open_container(path) as container:
        for packet in packets_of(container, list(container.streams)):
            packets.add(packet)
    return packets.end


def first_decoded(path: Path, number: int) -> int | None:
    """The display time of the first frame that a decoder gives, ticks of the file's clock; None: there is none.

    Args:
        path: The video.
        number: Of the picture stream.
    """
    with open_stream(path, number, threads=1) as (container, stream):
        for count, packet in enumerate(packets_of(container, [stream])):
            try:
                frames = stream.codec_context.decode(packet)
            except media_faults():
                frames = []
            if frames or count > _MOST_UNDECODED:
                return frames[0].pts if frames else None
    return None
