"""The packet index of a video's picture stream: when each frame is shown, by a player's clock.

Every time comes from the packets, because the frame rate and frame count that a container states
are wrong in too many files.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.clock import find_jumps, shifts, without_stills
from dgl_runtime.media.container import one_line, packet_time
from dgl_runtime.media.packet_index_cache import find_index, keep_index
from dgl_runtime.media.packet_pass import (
    NOT_GIVEN,
    first_decoded,
    place_of,
    read_others,
    read_pass,
)
from dgl_runtime.media.stills import find_still
from dgl_runtime.media.truncation import what_is_missing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from av import Packet
    from numpy.typing import NDArray

    from dgl_runtime.media.clock import Jump
    from dgl_runtime.media.packet_pass import Pass
    from dgl_runtime.media.stills import Still

_KEEP_FROM_S = 1.0
"""An index that took longer to read is kept on disk."""

_STILL_S = 1 / 25
"""How long a picture that does not move is said to last."""

_SAME_S = 1e-9
"""Seconds: smaller differences are rounding noise, far below any tick."""


@dataclass(frozen=True)
class PacketIndex:
    """What the packets of a picture stream say: N packets in file order that show M frames.

    Attributes:
        stream: Number of the picture stream in the container.
        times: Display time of each packet, ticks, int64 [N]; behind a jump of the clock they go on.
        decode_times: Decode time of each packet in the file, ticks, int64 [N]; its display time if not given.
        shown: Display times of the frames that can be shown, ascending and distinct, ticks, int64 [M].
        keyframes: Positions of the keyframes in file order, int64 [K].
        key_places: Where the packet of each keyframe begins in the file (-1: not given) and its size, bytes,
            int64 [K, 2].
        tick_s: Seconds per tick.
        zero_s: The second of the file's clock that players call 0: where the first of its streams begins.
        duration_s: From the first frame to the end of the last one, seconds.
        has_jumps: The clock jumps, so that a time in the file is no place in it.
        is_counted: The packets do not say when a frame is shown: the n-th frame that comes out
            of the decoder counts as shown at the n-th time, which rules out seeking.
        is_still: The file is a picture that does not move: the one frame is not FFmpeg's to decode.
        missing: What a file that ends early lacks, in words; None: nothing.
        remarks: What is odd about the file and was dealt with, in words.
    """

    stream: int
    times: NDArray[np.int64]
    decode_times: NDArray[np.int64]
    shown: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    key_places: NDArray[np.int64]
    tick_s: float
    zero_s: float
    duration_s: float
    has_jumps: bool
    is_counted: bool
    is_still: bool
    missing: str | None
    remarks: tuple[str, ...]

    @property
    def start_s(self) -> float:
        """The second, by a player's clock, at which the first frame is shown."""
        late_s = int(self.shown[0]) * self.tick_s - self.zero_s
        return late_s if late_s > _SAME_S else 0.0

    @property
    def end_s(self) -> float:
        """The second, by a player's clock, at which the last frame ends."""
        return self.start_s + self.duration_s

    def frames_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number, in order of display, of the frame on display at each second, int64 [F]."""
        shown_s = (self.shown - self.shown[0]) * self.tick_s
        shown_by_then = np.searchsorted(shown_s, times_s - self.start_s + _SAME_S, side="right")
        return np.maximum(shown_by_then - 1, 0).astype(np.int64)

    def second(self, ticks: int) -> float:
        """The second, by a player's clock, of a display time."""
        return self.start_s + (ticks - int(self.shown[0])) * self.tick_s

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

    def keyframe_of(self, packet: Packet[Any]) -> int | None:
        """Position in file order of a keyframe; None: none has its time, alone, its place and its size."""
        found = np.flatnonzero(self.times == packet_time(packet))
        is_there = np.all(self.key_places == place_of(packet), axis=1)
        if found.size != 1 or found[0] not in self.keyframes[is_there]:
            return None
        return int(found[0])


def read_index(path: Path) -> PacketIndex:
    """Read the packet index by demuxing the picture stream; only where it begins between keyframes is decoded.

    The index ends where the file can no longer be read, so a truncated file is as long as what
    is left of it. The last few indexes are kept, and on disk those that took long: to probe and then
    to read costs one pass.

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
    state = str(path.resolve()), size_bytes, modified_ns
    if (kept := find_index(*state)) is not None:
        return PacketIndex(**kept)
    started = time.monotonic()
    made = _make_index(path)
    if time.monotonic() - started > _KEEP_FROM_S:
        keep_index(*state, asdict(made))
    return made


def _make_index(path: Path) -> PacketIndex:
    """Read a file once; and again only for what its packets of pictures do not tell."""
    if (still := find_still(path)) is not None:
        return _index_of(still)
    read = read_pass(path)
    packets, tick_s = read.packets, read.tick_s
    durations = np.array(packets.durations, np.int64)
    if not durations.any():
        durations += max(1, round(read.step_s / tick_s))
    step = int(np.median(durations[durations > 0]))
    pts, dts = np.array(packets.pts, np.int64), np.array(packets.dts, np.int64)
    is_key = np.frombuffer(bytes(packets.keys), np.bool_)
    times = _fill(pts, dts, step)
    jumps = _find_jumps(read, times, is_key, step)
    moved = shifts(jumps, len(times), step)
    latest, times = int(times.max()), times + moved
    is_seen = ~np.frombuffer(bytes(packets.hidden), np.bool_)
    all_shown = np.unique(times[is_seen])
    shown = _from_first(all_shown, _first_shown(read, times, moved, is_key))
    last = _last_step(times, durations, shown) or step
    zero_s = _zero_s(read, int(shown[0]) * tick_s)
    never_s = (int(shown[0]) - int(all_shown[0])) * tick_s
    duration_s = (int(shown[-1]) - int(shown[0]) + last) * tick_s
    remarks = (
        read.remark,
        _remark_on_jumps(jumps, moved, step, tick_s, zero_s),
        _remark_on_start(never_s, len(all_shown) - len(shown)),
        _remark_on_doubles(times[is_seen], is_key[is_seen]),
    )
    ends_s, has_jumps = (latest + last) * tick_s, bool(jumps)
    missing = what_is_missing(read, ends_s, never_s + duration_s, has_jumps=has_jumps)
    has_no_pts = bool(np.all(pts == NOT_GIVEN))
    return PacketIndex(
        stream=read.stream,
        times=times,
        decode_times=_fill(dts, pts, step),
        shown=shown,
        keyframes=np.flatnonzero(is_key),
        key_places=np.array(packets.key_places, np.int64).reshape(-1, 2),
        tick_s=tick_s,
        zero_s=zero_s,
        duration_s=duration_s,
        has_jumps=has_jumps,
        is_counted=has_no_pts or (read.may_lie and bool(np.all(np.diff(times) > 0))),
        is_still=False,
        missing=missing,
        remarks=tuple(remark for remark in remarks if remark is not None),
    )


def _find_jumps(
    read: Pass, times: NDArray[np.int64], is_key: NDArray[np.bool_], step: int
) -> list[Jump]:
    """Where the clock jumps; the sound of the file is asked where pictures alone do not tell."""
    jumps = find_jumps(times, is_key, step, read.tick_s, forward=read.may_jump)
    if any(jump.after > jump.before for jump in jumps):
        return without_stills(jumps, read_others(read.path)[0], read.tick_s)
    return jumps


def _from_first(shown: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The times from one on; all, if there are none."""
    later = shown[shown >= first]
    return later if later.size else shown


def _index_of(still: Still) -> PacketIndex:
    """A picture is a video of one frame."""
    one = np.zeros(1, np.int64)
    return PacketIndex(
        stream=0,
        times=one,
        decode_times=one,
        shown=one,
        keyframes=one,
        key_places=np.array([[-1, 0]], np.int64),
        tick_s=_STILL_S,
        zero_s=0.0,
        duration_s=_STILL_S,
        has_jumps=False,
        is_counted=True,
        is_still=True,
        missing=None,
        remarks=() if still.remark is None else (still.remark,),
    )


def _fill(stamps: NDArray[np.int64], instead: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Ticks of each packet: its stamp, else the other one, else one step after the last."""
    filled = np.where(stamps == NOT_GIVEN, instead, stamps)
    for place in np.flatnonzero(filled == NOT_GIVEN).tolist():
        filled[place] = filled[place - 1] + step if place else 0
    return filled


def _first_shown(
    read: Pass, times: NDArray[np.int64], moved: NDArray[np.int64], is_key: NDArray[np.bool_]
) -> int:
    """When the first frame that can be shown is shown, ticks.

    A recording that begins in the middle, as a transmission does, shows nothing until its first keyframe,
    or later where the picture is refreshed in stripes; frames that are stored behind a first keyframe and shown
    before it refer to one that is not there. A decoder tells.
    """
    earliest, keys = int(times.min()), np.flatnonzero(is_key)
    if keys.size and times[keys[0]] == earliest:
        return earliest
    decoded = first_decoded(read.path, read.stream)
    found = np.flatnonzero(times - moved == decoded) if decoded is not None else keys[:1]
    first = int(times[found[0]]) if found.size else earliest
    return max(first, int(times[keys[0]])) if keys.size and keys[0] > 0 else first


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


def _zero_s(read: Pass, first_s: float) -> float:
    """The second of the file's clock that is 0 to a player."""
    if read.begins_s is None:
        return first_s
    # Sound before 0 fills a decoder and is not heard.
    return min(max(read.begins_s, 0.0), first_s)


def _remark_on_jumps(
    jumps: Sequence[Jump], moved: NDArray[np.int64], step: int, tick_s: float, zero_s: float
) -> str | None:
    if not jumps:
        return None
    first = jumps[0]
    at_s = (first.before + int(moved[first.packet - 1]) + step) * tick_s - zero_s
    by_s = (first.after - first.before - step) * tick_s
    return (
        f"has a clock that jumps (number of jumps: {len(jumps)}, the first by {by_s:+.1f} s at {at_s:.1f} s); "
        "its times go on as in a player"
    )


def _remark_on_doubles(times: NDArray[np.int64], is_key: NDArray[np.bool_]) -> str | None:
    """Keyframes alone tell that pictures are lost: a frame that is not to be shown has the next one's time."""
    first_of_its_time = np.zeros(len(times), np.bool_)
    first_of_its_time[np.unique(times, return_index=True)[1]] = True
    if not np.any(is_key & ~first_of_its_time):
        return None
    return (
        f"has {np.count_nonzero(~first_of_its_time)} pictures with the time of an earlier one, which no player "
        "shows; recordings of a few pictures, joined, are so"
    )


def _remark_on_start(lost_s: float, num_frames: int) -> str | None:
    if num_frames == 0:
        return None
    return (
        f"begins between keyframes: the first {lost_s:.1f} s of its pictures ({num_frames} frames) "
        "cannot be shown"
    )
