"""Files whose pictures are encrypted: they open, and nothing in them decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from dgl_runtime.errors import MediaError
from dgl_runtime.media.boxes import boxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from av.container import InputContainer

_PROTECTED = (b"encv", b"drmi")
"""Kinds of pictures in mp4: Common Encryption, FairPlay."""

_TO_SAMPLES = (b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_MATROSKA_KEY = "enc_key_id"  # FFmpeg's name for a track's key
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_KEYS = (
    bytes.fromhex("fbb31122 23bdd211 b4b700a0 c955fc6e"),
    bytes.fromhex("14e68a29 2226 174c b935 dae07ee9289c"),
)
"""Content Encryption Object, and the extended one."""

_HEAD_BYTES = 2**20
_TS_PACKETS = 188, 192, 204  # bytes; each begins with a G, or has 4 bytes before it
_TS_STREAM, _TS_SCRAMBLED = 0x1FFF, 0xC0
"""Bits of a packet: the number of its stream; that it is scrambled."""


def require_open_pictures(path: Path, container: InputContainer) -> None:
    """Refuse a file whose pictures are encrypted, as far as it says so.

    Args:
        path: The file.
        container: The same, opened.

    Raises:
        MediaError: They are.
    """
    if _is_encrypted(path, container):
        raise MediaError(
            f"{path} has encrypted pictures, which only a player that holds the key can show. "
            "Give a copy without encryption; with the key, ffmpeg -decryption_key makes one."
        )


def is_scrambled_behind(path: Path, container: InputContainer, offset: int) -> bool:
    """Whether the pictures of a transport stream go on behind ``offset``, and are encrypted there."""
    if container.format.name != "mpegts":
        return False
    with path.open("rb") as file:
        file.seek(offset)
        return _is_scrambled(file.read(_HEAD_BYTES), {s.id for s in container.streams.video})


def _is_encrypted(path: Path, container: InputContainer) -> bool:
    if any(_MATROSKA_KEY in stream.metadata for stream in container.streams.video):
        return True
    with path.open("rb") as file:
        if "mp4" in container.format.name:
            return any(kind in _PROTECTED for kind in _sample_kinds(file))
        head = file.read(_HEAD_BYTES)
    if container.format.name == "mpegts":
        return _is_scrambled(head, {stream.id for stream in container.streams.video})
    return head.startswith(_ASF_HEADER) and any(key in head for key in _ASF_KEYS)


def _sample_kinds(file: BinaryIO) -> Iterator[bytes]:
    """What the samples of each track of an mp4 are."""
    # Only the first: behind it, a fragmented file may have thousands of boxes.
    first = next((box for box in boxes(file) if box.kind == b"moov"), None)
    inside = [] if first is None else [first]
    for kind in _TO_SAMPLES:
        within = [child for box in inside for child in boxes(file, box.start, box.end)]
        inside = [box for box in within if box.kind == kind]
    for table in inside:
        # Version, flags and a count come first.
        yield from (box.kind for box in boxes(file, table.start + 8, table.end))


def _is_scrambled(head: bytes, streams: set[int]) -> bool:
    """Whether most packets of some streams of a transport stream are marked so."""
    for length in _TS_PACKETS:
        starts = (at for at in range(length) if head[at : at + 5 * length : length] == b"GGGGG")
        if (first := next(starts, None)) is not None:
            packets = [head[at : at + 4] for at in range(first, len(head) - 3, length)]
            flags = [p[3] for p in packets if int.from_bytes(p[1:3]) & _TS_STREAM in streams]
            return sum(flag & _TS_SCRAMBLED > 0 for flag in flags) > len(flags) / 2
    return False
