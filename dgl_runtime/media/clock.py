"""Time stamps that jump (joined recordings, restarted transmitters): found, and moved so that time goes on.

Players go on at such a place as if nothing had happened. So do we: what comes behind a jump is moved so
that it follows what was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BACK_S = 0.1
"""A keyframe this much before what was shown begins a new count: ffmpeg's threshold."""

_REORDERED_S, _REORDERED_FRAMES = 1.0, 16
"""Frames that are stored after ones shown later may lie this far back: H.264 and H.265 allow 16 frames,
which may take minutes where a slide stays; of a packet for each field there are twice as many, in a second."""

_FORWARD_S, _FORWARD_STEPS = 10.0, 10.0
"""In formats whose clock may jump, a longer wait for a picture is a jump: ffplay's and ffmpeg's threshold.
It must also be many times the usual wait, or slides that change every minute would be one jump each."""


@dataclass(frozen=True)
class Jump:
    """A place where the clock jumps.

    Attributes:
        packet: The first packet behind it, in file order.
        before: The latest time before it, ticks.
        after: The earliest time behind it, ticks.
    """

    packet: int
    before: int
    after: int


def find_jumps(
    times: NDArray[np.int64], is_key: NDArray[np.bool_], step: int, tick_s: float, *, forward: bool
) -> list[Jump]:
    """Where the clock of a picture stream jumps.

    Args:
        times: Display time of each packet in file order, ticks, int64 [N].
        is_key: Whether the packet holds a keyframe, bool [N].
        step: The usual time from frame to frame, ticks.
        tick_s: Seconds per tick.
        forward: Whether the clock of this format may jump forward; in others a frame that stays on display for
            an hour stays for an hour.
    """
    reordered = max(_REORDERED_S / tick_s, _REORDERED_FRAMES * step)
    latest: list[int] = []  # of the times since the last jump, a heap
    ahead = np.diff(np.maximum.accumulate(times))
    usual = np.median(ahead[ahead > 0]) if np.any(ahead > 0) else step
    most = max(_FORWARD_S / tick_s, _FORWARD_STEPS * usual) if forward else np.inf
    jumps, stamps = [], times.tolist()
    newest = stamps[0]
    for place, time in enumerate(stamps):
        is_back = newest - time > (_BACK_S / tick_s if is_key[place] else reordered)
        if is_back and not is_key[place]:  # or stored behind some that are shown later
            is_back = len(latest) > _REORDERED_FRAMES and latest[0] > time
        if is_back or time - newest > most:
            near = stamps[place : place + _REORDERED_FRAMES]
            if is_back:
                after = min(other for other in near if abs(other - time) <= reordered)
            else:  # frames that are stored behind it may fill the wait
                after = min(other for other in near if other > newest)
            if is_back or after - newest > most:
                jumps.append(Jump(place, newest, after))
                newest, latest = time, []
        newest = max(newest, time)
        heappush(latest, time)
        if len(latest) > _REORDERED_FRAMES + 1:
            heappop(latest)
    return jumps


def without_stills(jumps: list[Jump], heard_s: NDArray[np.float64], tick_s: float) -> list[Jump]:
    """Leave out the jumps forward in which sound goes on: there just is no new picture.

    Args:
        jumps: What :func:`find_jumps` found.
        heard_s: Times of packets of sound, seconds of the file's clock, float64.
        tick_s: Seconds per tick.
    """
    kept = []
    for jump in jumps:
        begins_s, ends_s = jump.before * tick_s + 1, jump.after * tick_s - 1
        if not np.any((heard_s > begins_s) & (heard_s < ends_s)):
            kept.append(jump)
    return kept


def shifts(jumps: list[Jump], num_packets: int, step: int) -> NDArray[np.int64]:
    """What to add to the stamps of each packet so that the clock goes on, ticks, int64 [N]."""
    moved = np.zeros(num_packets, np.int64)
    for jump in jumps:
        moved[jump.packet :] += jump.before + step - jump.after
    return moved
