"""Files whose pictures are encrypted: they open, and nothing in them decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from dgl_runtime.boxes import boxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from av.container import InputContainer

_PROTECTED = (b"encv", b"drmi")
"""Kinds of pictures in mp4: Common Encryption, FairPlay."""

_TO_SAMPLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_MATROSKA_KEY = "enc_key_id"  # FFmpeg's name for a track's key
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_KEYS = (
    bytes.fromhex("fbb31122 23bdd211 b4b700a0 c955fc6e"),
    bytes.fromhex("14e68a29 2226 174c b935 dae07ee9289c"),
)
"""Content Encryption Object, and the extended one."""

_HEAD_BYTES = 2**20
_TS_PACKETS = 188, 192, 204  # bytes; each begins with a G, or has 4 bytes before it

_TS_SCRAMBLED, _TS_MANY = 0xC0, 0.5


def is_encrypted(path: Path, container: InputContainer) -> bool:
    """Whether pictures of a file are encrypted, as far as it says so.

    Args:
        path: The file.
        container: The same, opened.
    """
    if any(_MATROSKA_KEY in stream.metadata for stream in container.streams.video):
        return True
    with path.open("rb") as file:
        if "mp4" in container.format.name:
            return any(kind in _PROTECTED for kind in _sample_kinds(file))
        head = file.read(_HEAD_BYTES)
    if container.format.name == "mpegts":
        return _is_scrambled(head)
    return head.startswith(_ASF_HEADER) and any(key in head for key in _ASF_KEYS)


def _sample_kinds(
    file: BinaryIO, path: tuple[bytes, ...] = _TO_SAMPLES, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """What the samples of each track of an mp4 are."""
    for box in boxes(file, start, end):
        if not path:
            yield box.kind
        elif box.kind == path[0]:
            # Version, flags and a count stand before the kinds of samples.
            inside = box.start + (8 if len(path) == 1 else 0)
            yield from _sample_kinds(file, path[1:], inside, box.end)


def _is_scrambled(head: bytes) -> bool:
    """Whether most packets of a transport stream are marked so; its tables never are."""
    for length in _TS_PACKETS:
        first = next(
            (
                place
                for place in range(length)
                if head[place : place + 5 * length : length] == b"GGGGG"
            ),
            None,
        )
        if first is not None:
            flags = head[first + 3 :: length]
            return sum(flag & _TS_SCRAMBLED > 0 for flag in flags) > _TS_MANY * len(flags)
    return False
