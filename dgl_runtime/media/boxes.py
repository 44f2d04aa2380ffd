"""The boxes that files of the mp4 family (mp4, mov, heic, avif) are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_WITH_SIZE = 8  # bytes of a box's head: its length, and its kind


class Box(NamedTuple):
    """A box: its kind, and where in the file its content begins and ends."""

    kind: bytes
    start: int
    end: int


def boxes(file: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield the boxes that lie one behind another in a stretch of a file, as far as they make sense.

    Args:
        file: Read at any place.
        start: Where the first begins.
        end: Where the stretch ends; None: with the file.
    """
    end = file.seek(0, 2) if end is None else end
    while end - start >= _WITH_SIZE:
        file.seek(start)
        head = file.read(_WITH_SIZE)
        length, content = int.from_bytes(head[:4]), start + _WITH_SIZE
        if length == 1:  # the length follows in 8 bytes
            length, content = int.from_bytes(file.read(8)), content + 8
        elif length == 0:  # as far as there is
            length = end
        if not content <= min(start + length, end):
            return
        yield Box(head[4:], content, min(start + length, end))
        start += length
