"""The SQLite file of a gallery: its schema, how it is opened, and SQLite's errors as ours.

A reader holds one read transaction (of a write-ahead log), so it sees one state of the gallery
however long it stays open, and never waits for the writer.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.folder import RECORDS
from dgl_runtime.names import nfc

SCHEMA_VERSION = 2
APPLICATION = 0x64676C67  # "dglg", tells the file from SQLite files of others
_WAIT_S = 30.0  # for another process's transaction
SCHEMA = """
CREATE TABLE header (
    bundle_id TEXT NOT NULL, bundle_path BLOB NOT NULL, embed_dim INTEGER NOT NULL,
    num_frames INTEGER NOT NULL, num_rows INTEGER NOT NULL, generation INTEGER NOT NULL,
    version INTEGER NOT NULL
);
CREATE TABLE videos (
    id INTEGER PRIMARY KEY, content_sha256 TEXT NOT NULL UNIQUE, duration_s REAL NOT NULL
);
CREATE TABLE files (
    path BLOB PRIMARY KEY, video_id INTEGER NOT NULL REFERENCES videos, size INTEGER, mtime_ns INTEGER
);
CREATE INDEX files_by_video ON files (video_id);
CREATE TABLE clips (
    row INTEGER PRIMARY KEY, video_id INTEGER NOT NULL REFERENCES videos,
    start_s REAL NOT NULL, end_s REAL NOT NULL, UNIQUE (video_id, start_s, end_s)
);
CREATE TABLE cuts (video_id INTEGER NOT NULL REFERENCES videos, cutting TEXT NOT NULL,
    PRIMARY KEY (video_id, cutting)) WITHOUT ROWID;
CREATE TABLE dead_rows (row INTEGER PRIMARY KEY);
CREATE TABLE metadata (video_id INTEGER PRIMARY KEY REFERENCES videos);
"""


def stored_as(name: str) -> str:
    """The name that a column of the metadata has in its table, which has a column of its own.

    Names are given without spaces around them, so a space keeps the two apart.
    """
    return f"{name} " if name.lower() == "video_id" else name


def open_writer(path: Path) -> sqlite3.Connection:
    """Open for transactions that survive a power cut."""
    connection = connect(path, "mode=rw")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Begin to read one state; where no lock can be written (permissions, full disk), of a file at rest.

    Raises:
        GalleryError: It is not at rest: a writer runs or was killed, and its log cannot be used here.
    """
    try:
        return _begun(connect(path, "mode=ro"))
    except sqlite3.OperationalError as error:
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN:  # the rest is detail
                raise
            raise _log_cannot_be_used(path, log) from error
        return _begun(connect(path, "mode=ro&immutable=1"))


def _log_cannot_be_used(path: Path, log: Path) -> GalleryError:
    shared = path.with_name(path.name + "-shm")  # SQLite makes it anew, where it may
    here = f"gallery {path.parent} was left by a writer that was killed (or still runs), and"
    for file in (log, shared):
        if file.exists() and not os.access(file, os.R_OK):
            return GalleryError(f"{here} {file.name} may not be read. Change its permissions.")
    return GalleryError(
        f"{here} what it wrote last cannot be read here, where {shared.name} is missing and cannot be made. "
        "Copy the folder to where it can be written and search the copy, or run dgl-index on it there once."
    )


def _begun(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("BEGIN")
        connection.execute(
            "SELECT 1 FROM sqlite_master"
        ).fetchone()  # the state is that of the first read
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Open in autocommit: transactions are said in so many words. As a URI a path may hold any bytes."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.create_function("composed", 1, _composed, deterministic=True)
    return connection


def _composed(path: bytes) -> bytes:
    """A path with its names in NFC, as filters have them; one that is no text stays as it is."""
    try:
        return path if path.isascii() else nfc(path.decode()).encode()
    except UnicodeDecodeError:
        return path


def require_ours(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse SQLite files of others, and galleries of another version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise damaged(path, "it is not the SQLite file of a gallery")
    if version != SCHEMA_VERSION:
        raise GalleryError(
            f"{path} has schema version {version}, this build reads {SCHEMA_VERSION}. "
            "Index the videos again, or install the version that wrote it."
        )


def damaged(path: Path, reason: str) -> GalleryError:
    """Return the error for a file of a gallery that cannot be what was written."""
    return GalleryError(
        f"{path} is damaged: {reason}. "
        "Restore it from a copy, or index the videos into a new folder."
    )


@contextmanager
def faults_of(folder: Path) -> Iterator[None]:
    """SQLite's errors as ours: a full disk or a lock is not a damaged file."""
    try:
        yield
    except sqlite3.ProgrammingError as error:  # that it is closed
        raise GalleryError(f"gallery {folder} is closed. Open it again.") from error
    except sqlite3.OperationalError as error:
        raise GalleryError(
            f"gallery {folder}: {RECORDS} cannot be read or written: {error}. "
            "Check the free space and the permissions, and that no other program holds it."
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(folder / RECORDS, str(error)) from error
