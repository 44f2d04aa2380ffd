"""The files of a gallery: how they are read, checked, written and locked.

``gallery.json`` is the truth: rows after its ``num_clips`` do not exist. Rows are appended and
synced first, then that file is replaced in one step. So a crash loses the batch in flight at the
most, and never leaves half a row.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery_clips import damaged

SCHEMA_VERSION = 1
HEADER = "gallery.json"
EMBEDDINGS = "embeddings.f32"  # raw little-endian float32 [N, E]
FRAME_WEIGHTS = "frame_weights.f32"  # raw little-endian float32 [N, F]
CLIPS = "clips.jsonl"
INDEX = "clips.usearch"
_DATA_FILES = (EMBEDDINGS, FRAME_WEIGHTS, CLIPS)
_HEADER_TEMPORARY = HEADER + ".tmp"
_LOCK = "writer.lock"
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Header:
    """The contents of ``gallery.json``."""

    schema_version: int
    bundle_id: str
    bundle_path: str
    embed_dim: int
    num_frames: int
    num_clips: int

    def data_sizes(self, clips_bytes: int) -> dict[str, int]:
        """Return the bytes that each data file must hold at least."""
        return {
            EMBEDDINGS: 4 * self.num_clips * self.embed_dim,
            FRAME_WEIGHTS: 4 * self.num_clips * self.num_frames,
            CLIPS: clips_bytes,
        }


def require_unused(folder: Path) -> None:
    """Refuse a folder that holds more than a killed :func:`create_files` leaves behind."""
    if (folder / HEADER).exists():
        raise GalleryError(f"{folder} is a gallery already. Open it instead of creating it.")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        is_leftover = path.name in _DATA_FILES and path.stat().st_size == 0
        if not is_leftover and path.name not in (_LOCK, _HEADER_TEMPORARY):
            raise GalleryError(
                f"{folder} holds {path.name}, so no gallery is made there. Name an empty one."
            )


def create_files(folder: Path, header: Header) -> None:
    """Write the files of an empty gallery, ``gallery.json`` last."""
    for name in _DATA_FILES:
        write_at(folder / name, 0, b"")
    write_header(folder, header)
    sync_folder(folder)


def read_header(folder: Path) -> Header:
    """Read and check ``gallery.json``."""
    path = folder / HEADER
    if not path.is_file():
        raise GalleryError(
            f"{folder} is not a gallery: it has no {HEADER}. Name a folder that dgl-index wrote."
        )
    try:
        values = json.loads(path.read_bytes())
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it is not the JSON of a gallery ({error!r})") from error
    if version != SCHEMA_VERSION:
        raise GalleryError(
            f"{path} has schema_version {version!r}, this build reads {SCHEMA_VERSION}. "
            "Index the videos again, or install the version that wrote it."
        )
    expected = {field.name: field.type for field in fields(Header)}
    if {name: type(value) for name, value in values.items()} != expected:
        raise damaged(path, f"expected {', '.join(expected)}, it holds {values}")
    header = Header(**values)
    if header.embed_dim < 1 or header.num_frames < 1 or header.num_clips < 0:
        raise damaged(path, f"a size is out of range in {values}")
    return header


def write_header(folder: Path, header: Header) -> None:
    """Replace ``gallery.json`` in one step: this commits the rows that were written before."""
    temporary = folder / _HEADER_TEMPORARY
    with temporary.open("wb") as file:
        file.write(json.dumps(asdict(header), indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / HEADER)


def require_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Raise GalleryError if a data file is shorter than ``gallery.json`` says."""
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found < size:
            raise damaged(folder / name, f"it holds {found} bytes, its clips need {size}")


def map_rows(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Map the first rows of a data file, read-only."""
    if shape[0] == 0:  # an empty file cannot be mapped
        rows = np.zeros(shape, np.float32)
        rows.flags.writeable = False
        return rows
    return np.memmap(path, dtype="<f4", mode="r", shape=shape).view(np.ndarray)


def require_matrix(
    name: str, matrix: NDArray[np.float32], shape: tuple[int | str, int], *, is_unit: bool = False
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


def append_rows(
    folder: Path,
    *,
    committed: tuple[Header, int],
    header: Header,
    rows: tuple[NDArray[np.float32], NDArray[np.float32], bytes],
) -> None:
    """Write rows behind the committed ones, then commit them; an OSError leaves all as it was.

    Args:
        folder: The gallery's folder.
        committed: The header so far and the bytes of ``clips.jsonl`` that belong to it.
        header: The header that counts the new rows.
        rows: Embeddings float32 [N, E], frame weights float32 [N, F], lines of ``clips.jsonl``.
    """
    before, clips_bytes = committed
    if read_header(folder) != before:
        raise GalleryError(f"gallery {folder} was changed behind this writer. Open it again.")
    sizes = before.data_sizes(clips_bytes)
    embeddings, frame_weights, lines = rows
    try:
        write_at(folder / EMBEDDINGS, sizes[EMBEDDINGS], embeddings.astype("<f4").tobytes())
        write_at(
            folder / FRAME_WEIGHTS, sizes[FRAME_WEIGHTS], frame_weights.astype("<f4").tobytes()
        )
        write_at(folder / CLIPS, sizes[CLIPS], lines)
        write_header(folder, header)
    except OSError:
        with suppress(OSError):  # frees the disk; the next append cuts in any case
            cut(folder, sizes)
        raise


def cut(folder: Path, sizes: dict[str, int]) -> None:
    """Drop what a writer left behind the last committed row."""
    for name, size in sizes.items():
        os.truncate(folder / name, size)


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and sync ``data`` at ``offset``; whatever stood from there on is lost."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renamed and new files of a folder survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise GalleryError(
            f"gallery {folder}: the disk did not confirm the last change: {error}. Check the disk."
        ) from error


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
