"""Filters of a search: an SQL condition on moments, run by SQLite, which may read and nothing else."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery_records import Records

COLUMNS = ("video", "start_s", "end_s", "duration_s", "modified")
"""What a condition may name beside the columns of the metadata."""

_STEPS = 1000  # of SQLite's machine between looks at the clock
_MOST_S = 2.0
_LONGEST_TEXT = 10_000  # bytes that a function may make
_LONGEST_PATTERN = 200  # bytes of a LIKE or GLOB pattern
_MAY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}
_MAY_READ = {"clips", "videos", "files", "metadata", ""}  # "": of no table, as in count(*)
_MOMENTS = """
SELECT clips.row AS "row",
    CAST((SELECT path FROM files WHERE files.video_id = clips.video_id ORDER BY rowid LIMIT 1) AS TEXT)
        AS "video",
    start_s, end_s, duration_s,
    (SELECT datetime(max(mtime_ns) / 1000000000, 'unixepoch') FROM files
        WHERE files.video_id = clips.video_id) AS "modified"
    {metadata}
FROM clips JOIN videos ON videos.id = clips.video_id LEFT JOIN metadata ON metadata.video_id = videos.id
"""


def select_rows(records: Records, where: str) -> NDArray[np.int64]:
    """Rows of the moments that fulfil a condition.

    Args:
        records: Of the gallery.
        where: What follows WHERE in SQL, such as ``camera = 'north' AND start_s < 60``. It may name
            ``COLUMNS`` and those of the metadata.

    Raises:
        GalleryError: It is not SQL, names an unknown column, or takes too long.
    """
    columns = records.metadata_columns()
    metadata = "".join(f", metadata.{quoted(name)}" for name in columns)
    query = f'SELECT "row" FROM ({_MOMENTS.format(metadata=metadata)}) WHERE (\n{where}\n)'
    known = ", ".join((*COLUMNS, *columns))
    try:
        num_rows = records.header().num_rows
        with records.reading() as connection, _limited(connection):
            found = connection.execute(query).fetchmany(2 * num_rows + 2)
        if len(found) > 2 * num_rows + 1:
            raise ValueError("it gives many more rows than there are clips")
        rows = np.array(found, np.int64).reshape(-1)
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        reason = "it takes too long" if "interrupted" in str(error) else str(error)
        raise GalleryError(
            f"the filter {where!r} does not work: {reason}. Give a condition in SQL on {known}; "
            "texts stand in 'single quotes'."
        ) from error
    return rows[(rows >= 0) & (rows < num_rows)]


def quoted(name: str) -> str:
    """A column's name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _limited(connection: sqlite3.Connection) -> Iterator[None]:
    """For a condition that anybody may have written: only reading, for a while, of texts of some size."""
    deadline = time.monotonic() + _MOST_S

    def is_late() -> bool:
        return time.monotonic() > deadline  # True interrupts

    def allow(action: int, table: str | None, *_: object) -> int:
        may = action in _MAY or (action == sqlite3.SQLITE_READ and table in _MAY_READ)
        return sqlite3.SQLITE_OK if may else sqlite3.SQLITE_DENY

    limits = {
        sqlite3.SQLITE_LIMIT_LENGTH: _LONGEST_TEXT,
        sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: _LONGEST_PATTERN,
    }
    before = {kind: connection.setlimit(kind, limit) for kind, limit in limits.items()}
    connection.set_progress_handler(is_late, _STEPS)
    connection.set_authorizer(allow)
    try:
        yield
    finally:
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
        for kind, limit in before.items():
            connection.setlimit(kind, limit)
