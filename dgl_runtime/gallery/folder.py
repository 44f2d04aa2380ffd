"""The folder of a gallery: the names of its files, the writer's lock, and what survives a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgl_runtime.errors import GalleryError

RECORDS = "gallery.sqlite"
EMBEDDINGS, FRAME_WEIGHTS, GRAPH = "embeddings", "frame_weights", "clips"
SUFFIXES = {EMBEDDINGS: "f32", FRAME_WEIGHTS: "f32", GRAPH: "usearch"}
_LOCK = "writer.lock"


def path_of(folder: Path, name: str, generation: int) -> Path:
    """Where the vectors, or the graph over them, of a generation lie."""
    return folder / f"{name}.{generation}.{SUFFIXES[name]}"


def require_unused(folder: Path) -> None:
    """Refuse a folder that holds more than a creation that was killed leaves behind."""
    if (folder / RECORDS).exists():
        raise GalleryError(f"{folder} is a gallery already. Open it instead of creating it.")
    ours = {path_of(folder, name, 0).name for name in (EMBEDDINGS, FRAME_WEIGHTS)}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        is_leftover = path.name in ours and path.stat().st_size == 0
        is_leftover |= path.name == _LOCK or path.name.startswith(f"{RECORDS}.tmp")
        if not is_leftover:
            raise GalleryError(
                f"{folder} holds {path.name}, so no gallery is made there. Name an empty one."
            )


def sync_folder(folder: Path) -> None:
    """Make renamed and new files of a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the one writer's lock; the system releases it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError as error:
        raise GalleryError(
            "writing a gallery needs POSIX file locks (Linux, macOS). Reading works everywhere."
        ) from error
    with (folder / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GalleryError(
                f"gallery {folder} has a writer already, and it takes one at a time. "
                "Wait until that one has finished, or open it for reading."
            ) from error
        yield
