"""Packet indexes of large videos, cached on disk: to show one picture of it, a video need not be read again."""

import hashlib
import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dgl_runtime.cache_folder import cache_folder

_FORMAT = 4  # one more whenever an index holds something else
_MOST_BYTES = 512 * 2**20
_FACTS = "facts"


def find_index(path: str, size_bytes: int, modified_ns: int) -> dict[str, Any] | None:
    """What :func:`keep_index` kept of this state of a file; None: nothing that can be read."""
    file = _file(path, size_bytes, modified_ns)
    try:
        with file.open("rb") as opened, np.load(opened) as held:
            found: dict[str, Any] = {name: held[name] for name in held.files if name != _FACTS}
            found |= json.loads(bytes(held[_FACTS]))
        file.touch()  # the ones used last stay
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None
    found["remarks"] = tuple(found["remarks"])
    return found


def keep_index(path: str, size_bytes: int, modified_ns: int, index: dict[str, Any]) -> None:
    """Keep an index; a folder that cannot be written costs time and nothing else.

    Args:
        path: The video, resolved.
        size_bytes: Its size.
        modified_ns: When it was changed.
        index: The fields of a packet index: arrays, and what JSON can say.
    """
    file = _file(path, size_bytes, modified_ns)
    arrays = {name: value for name, value in index.items() if isinstance(value, np.ndarray)}
    facts = {name: value for name, value in index.items() if name not in arrays}
    making = file.with_name(f"{secrets.token_hex(8)}.part.npz")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            said = np.frombuffer(json.dumps(facts).encode(), np.uint8)
            np.savez_compressed(making, allow_pickle=False, **{_FACTS: said, **arrays})
            making.replace(file)
        finally:
            making.unlink(missing_ok=True)
        _make_room(file.parent)


def _file(path: str, size_bytes: int, modified_ns: int) -> Path:
    from importlib.metadata import version

    # What the packets say depends on the FFmpeg that reads them, which comes with PyAV.
    key = repr((_FORMAT, version("av"), path, size_bytes, modified_ns)).encode(
        "utf-8", "surrogateescape"
    )
    return cache_folder() / "packets" / f"{hashlib.sha256(key).hexdigest()}.npz"


def _make_room(folder: Path) -> None:
    """Drop the ones that have not been used for longest, if they are too much together."""
    states = sorted(
        ((file.stat(), file) for file in folder.iterdir()), key=lambda one: one[0].st_mtime
    )
    used = sum(state.st_size for state, _ in states)
    for state, file in states:
        if used <= _MOST_BYTES:
            return
        file.unlink()
        used -= state.st_size
