"""Truncated files: the one rule for what a file lacks, for training and for indexing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dgl_runtime.media.boxes import boxes
from dgl_runtime.media.packet_pass import last_byte, read_others

if TYPE_CHECKING:
    from pathlib import Path

    from dgl_runtime.media.packet_pass import Pass

_FROM_S, _PART = 0.5, 0.02
"""Something is missing if more than this is: seconds, and of what is there; of bytes, the part alone."""

_BEGINNINGS = re.compile(
    rb"\0\0\0[\x08-\xff]ftyp|FLV\x01[\x01\x04\x05]|\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9|OggS\0\x02|"
    rb"RIFF....AVI |\x1a\x45\xdf\xa3",
    re.DOTALL,
)
"""How a recording begins in formats of which at times only the first in a file is read: mp4, flv, asf, ogg,
avi, mkv."""

_STREAMS = re.compile(rb"(?:G.{187}){8}|\x00\x00\x01\xba[\x21\x44-\x47]", re.DOTALL)
"""What a transport stream and a program stream are all along; either may follow a file of another format."""

_BLOCK, _LONGEST_BEGINNING = 2**22, 8 * 188

_AVI = re.compile(rb"RIFF(....)AVI ", re.DOTALL)  # and how much follows, in 4 bytes
_ASF = re.compile(
    rb"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65.{24}(.{8})", re.DOTALL
)
"""The object of an asf that states its size, in 8 bytes."""

_HEAD_BYTES = 2**16
_TAIL_PART, _TAIL_BYTES = 0.1, 2**15
"""This much of a file in which no stream has data is more than the stuffing of sectors and constant rates."""


def what_is_missing(read: Pass, last_s: float, duration_s: float, *, has_jumps: bool) -> str | None:
    """What a file lacks, or holds where no reader comes, in words; None: nothing.

    Args:
        read: The pass over it.
        last_s: Where its pictures end, seconds of the file's clock.
        duration_s: How long they last, those that cannot be shown among them.
        has_jumps: The clock jumps, so that what a file says of its duration says nothing.
    """
    if has_jumps:
        return _unread(read, duration_s)
    stated_s, reached_s = read.stated_s, duration_s
    if stated_s is None and read.all_s is not None and _is_short(last_s, read.all_s):
        # Sound and subtitles may well outlast the pictures: the longest stream counts.
        stated_s, reached_s = read.all_s, max(last_s, read_others(read.path)[1])
    if stated_s is not None and _is_short(reached_s, stated_s):
        return (
            f"ends after {reached_s:.1f} s of the {stated_s:.1f} s it states: the rest is missing, "
            "or its header is wrong. Copy or download it again."
        )
    size, stated = read.path.stat().st_size, _stated_bytes(read.path)
    if stated - size > _PART * size:
        return (
            f"ends after {reached_s:.1f} s: of the {stated} bytes it states {size} are there. "
            "Copy or download it again."
        )
    return _unread(read, duration_s)


def _stated_bytes(path: Path) -> int:
    """The size that the header of an avi or asf states, of which FFmpeg makes nothing; 0: none."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if (found := _AVI.match(head)) is not None:
        size = int.from_bytes(found[1], "little")
        return 8 + size if size < 2**32 - 1 else 0
    if _BEGINNINGS.match(head) and (found := _ASF.search(head)) is not None:
        return int.from_bytes(found[1], "little")
    return 0


def _is_short(reached_s: float, stated_s: float) -> bool:
    return stated_s - reached_s > max(_FROM_S, _PART * reached_s)


def _unread(read: Pass, duration_s: float) -> str | None:
    """What lies behind the last packet, if that is more than tables.

    A second recording may begin before it: FFmpeg takes the first frame of a second avi for one of the first.
    """
    size, end = read.path.stat().st_size, read.packets.end
    if (second := _second_recording(read.path)) is not None and second < read.packets.last_but_one:
        return (
            f"holds another recording, at byte {second} of {size}, of which players show a part. "
            "Split it there, or convert it to one recording."
        )
    if size - end <= _PART * size:
        return None
    if read.end.fault is not None:
        reason = f"reading it stops there ({read.end.fault}). Copy or download it again"
    elif read.end.is_other:
        reason = "streams follow that its beginning does not announce, as of another recording. Split it there"
    elif _has(_BEGINNINGS, read.path, read.packets.last_but_one) or (
        not read.may_jump and _has(_STREAMS, read.path, end)
    ):
        reason = "another recording follows, which no player reaches. Split it there"
    elif read.may_jump and _is_empty(size - last_byte(read.path), size):  # formats without tables
        reason = "no picture and no sound follows. Copy or download it again"
    else:
        return None
    return (
        f"can be read for {duration_s:.1f} s, which are {end} of its {size} bytes: {reason}, or "
        "convert it to one recording."
    )


def _is_empty(tail: int, size: int) -> bool:
    return tail > max(_TAIL_BYTES, _TAIL_PART * size)


def _second_recording(path: Path) -> int | None:
    """Where a second avi or mp4 begins behind a first; a large avi's own later parts are no such."""
    with path.open("rb") as file:
        first = file.read(12)
        if first[4:8] == b"ftyp":
            begins = [box.start - 8 for box in boxes(file) if box.kind == b"ftyp"]
            return begins[1] if len(begins) > 1 else None
        if (found := _AVI.match(first)) is None:
            return None
        size = int.from_bytes(found[1], "little")
        second = 8 + size + size % 2
        file.seek(second)
        return second if _AVI.match(file.read(12)) else None


def _has(beginnings: re.Pattern[bytes], path: Path, offset: int) -> bool:
    """Whether a recording begins somewhere behind ``offset``."""
    with path.open("rb") as file:
        file.seek(max(offset, 1))  # not that of the file itself
        before = b""
        while block := file.read(_BLOCK):
            if beginnings.search(before + block):
                return True
            before = block[-_LONGEST_BEGINNING:]
    return False
