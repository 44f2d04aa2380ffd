"""The vectors of a gallery: embeddings and frame weights as raw float32, a row for each clip.

Rows are written and synced behind the last one that the records know, and count from the moment
these say so. Compacting writes files of the next generation; those of another generation than the
records' are remains.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Header
from dgl_runtime.gallery.sqlite import damaged

Float32 = NDArray[np.float32]

EMBEDDINGS, FRAME_WEIGHTS, INDEX = "embeddings", "frame_weights", "clips"
_SUFFIXES = {EMBEDDINGS: "f32", FRAME_WEIGHTS: "f32", INDEX: "usearch"}
_LOCK = "writer.lock"
_NORM_TOLERANCE = 1e-3
_ROWS_AT_ONCE = 16_384


def path_of(folder: Path, name: str, generation: int) -> Path:
    """Where the vectors, or the approximate index, of a generation lie."""
    return folder / f"{name}.{generation}.{_SUFFIXES[name]}"


def create_vectors(folder: Path, generation: int) -> None:
    """Write the files of an empty gallery."""
    for name in (EMBEDDINGS, FRAME_WEIGHTS):
        _write_at(path_of(folder, name, generation), 0, b"")


def map_vectors(folder: Path, header: Header) -> tuple[Float32, Float32]:
    """Map embeddings [N, E] and frame weights [N, F], read-only.

    Raises:
        GalleryError: A file is shorter than the records say.
        OSError: A file is missing, or may not be read.
    """
    embeddings, frame_weights = (
        _map(path_of(folder, name, header.generation), (header.num_rows, width))
        for name, width in _widths(header)
    )
    return embeddings, frame_weights


def append_vectors(
    folder: Path, header: Header, embeddings: Float32, frame_weights: Float32
) -> None:
    """Write and sync rows behind those of ``header``; they count when the records say so."""
    for (name, width), rows in zip(_widths(header), (embeddings, frame_weights), strict=True):
        path = path_of(folder, name, header.generation)
        _write_at(path, 4 * header.num_rows * width, rows.astype("<f4").tobytes())


def cut_vectors(folder: Path, header: Header) -> None:
    """Drop rows that the records do not know, and files of other generations."""
    for name, width in _widths(header):
        os.truncate(path_of(folder, name, header.generation), 4 * header.num_rows * width)
    for name, suffix in _SUFFIXES.items():
        ours = re.compile(rf"{name}\.\d+\.{suffix}(\.tmp)?")
        for path in folder.glob(f"{name}.*"):
            if ours.fullmatch(path.name) and path != path_of(folder, name, header.generation):
                path.unlink()


def compact_vectors(folder: Path, header: Header, living: NDArray[np.bool_]) -> None:
    """Write the living rows into files of the next generation."""
    for (name, _), rows in zip(_widths(header), map_vectors(folder, header), strict=True):
        with path_of(folder, name, header.generation + 1).open("wb") as file:
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                part = slice(first, first + _ROWS_AT_ONCE)
                file.write(rows[part][living[part]].astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def _widths(header: Header) -> tuple[tuple[str, int], tuple[str, int]]:
    return (EMBEDDINGS, header.embed_dim), (FRAME_WEIGHTS, header.num_frames)


def _map(path: Path, shape: tuple[int, int]) -> Float32:
    found, needed = path.stat().st_size, 4 * shape[0] * shape[1]
    if found < needed:
        raise damaged(path, f"it holds {found} bytes, its clips need {needed}")
    if not needed:  # an empty file cannot be mapped
        rows = np.zeros(shape, np.float32)
        rows.flags.writeable = False
        return rows
    return np.memmap(path, dtype="<f4", mode="r", shape=shape).view(np.ndarray)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and sync ``data`` at ``offset``; whatever stood from there on is lost."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def require_matrix(
    name: str, matrix: Float32, shape: tuple[int | str, int], *, is_unit: bool = False
) -> None:
    """Raise ValueError unless a matrix is finite float32 of this shape, and its rows unit-norm.

    A letter as the number of rows stands for any number.
    """
    rows, width = shape
    found = matrix.shape
    is_shape = len(found) == 2 and found[1] == width and (rows == found[0] or isinstance(rows, str))
    if matrix.dtype != np.float32 or not is_shape:
        raise ValueError(
            f"{name} are {matrix.dtype} {list(found)}, expected float32 [{rows}, {width}]."
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} hold a NaN or an infinity. Check what made them.")
    lengths = np.linalg.norm(matrix, axis=1)
    if is_unit and not np.allclose(lengths, 1, rtol=0, atol=_NORM_TOLERANCE):
        worst = int(np.abs(lengths - 1).argmax())
        raise ValueError(
            f"{name}[{worst}] has length {lengths[worst]:.4g}, expected 1. Divide it by its length."
        )


def require_unused(folder: Path, records: str) -> None:
    """Refuse a folder that holds more than a creation that was killed leaves behind."""
    if (folder / records).exists():
        raise GalleryError(f"{folder} is a gallery already. Open it instead of creating it.")
    ours = {path_of(folder, name, 0).name for name in (EMBEDDINGS, FRAME_WEIGHTS)}
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        is_leftover = path.name in ours and path.stat().st_size == 0
        is_leftover |= path.name == _LOCK or path.name.startswith(f"{records}.tmp")
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
def writer_lock(folder: Path) -> Iterator[IO[bytes]]:
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
        yield file
