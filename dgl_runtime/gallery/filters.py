"""Filters of a search: an SQL condition on moments, run by SQLite, which may read and nothing else."""

import difflib
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import ConditionError
from dgl_runtime.gallery.records import Records
from dgl_runtime.gallery.sqlite import stored_as
from dgl_runtime.names import nfc

COLUMNS = ("video", "start_s", "end_s", "duration_s", "modified")
"""What a condition may name beside the columns of the metadata."""

LONGEST_TEXT = 32_000
"""Bytes of a text that a function may make, and so of one that the metadata may hold."""

_STEPS = 100  # of SQLite's machine between looks at the clock; one function may take 0.1 s
_MOST_S = 2.0
_LONGEST_PATTERN = 200  # bytes of a LIKE or GLOB pattern
_MAY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}
_MAY_READ = {"clips", "videos", "files", "metadata", ""}  # "": of no table, as in count(*)
_ROW = " row"  # no name of the metadata begins with a space
_MOMENTS = """
SELECT clips.row AS "{row}",
    CAST(composed((
        SELECT files.path FROM files WHERE files.video_id = clips.video_id ORDER BY files.rowid LIMIT 1
    )) AS TEXT) AS "video",
    clips.start_s AS "start_s", clips.end_s AS "end_s", videos.duration_s AS "duration_s",
    (SELECT datetime(max(files.mtime_ns) / 1000000000, 'unixepoch') FROM files
        WHERE files.video_id = clips.video_id) AS "modified"
    {metadata}
FROM clips JOIN videos ON videos.id = clips.video_id LEFT JOIN metadata ON metadata.video_id = videos.id
"""
# What SQLite takes in one piece: texts, quoted names of four kinds, comments.
_QUOTED = re.compile(
    r"""'(?:[^']|'')*' | "((?:[^"]|"")*)" | `(?:[^`]|``)*` | \[[^\]]*\] | --[^\n]* | /\*.*?(?:\*/|\Z)""",
    re.VERBOSE | re.DOTALL,
)


def select_rows(records: Records, where: str) -> NDArray[np.int64]:
    """Rows of the moments that fulfil a condition.

    Args:
        records: Of the gallery.
        where: What follows WHERE in SQL, such as ``camera = 'north' AND start_s < 60``. It may name
            ``COLUMNS`` and those of the metadata.

    Raises:
        ConditionError: It is not SQL, names an unknown column, or takes too long.
    """
    columns = records.metadata_columns()
    metadata = "".join(
        f", metadata.{quoted(stored_as(name))} AS {quoted(nfc(name))}" for name in columns
    )
    moments = _MOMENTS.format(row=_ROW, metadata=metadata)
    query = f"SELECT {quoted(_ROW)} FROM ({moments}) WHERE (\n{_names_only(nfc(where))}\n)"
    known = [*COLUMNS, *columns]
    try:
        num_rows = records.header().num_rows
        with records.reading() as connection, _limited(connection):
            found = connection.execute(query).fetchmany(2 * num_rows + 2)
        if len(found) > 2 * num_rows + 1:
            raise ValueError("it gives many more rows than there are clips")
        rows = np.array(found, np.int64).reshape(-1)
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise does_not_work(where, _reason(error, known), known) from error
    return rows[(rows >= 0) & (rows < num_rows)]


def _names_only(where: str) -> str:
    """A condition whose double quotes are names: SQLite takes "yaer" for a text if no column has that name.

    Names in backticks mean the same and are never texts.
    """
    return _QUOTED.sub(
        lambda found: found[0] if found[1] is None else _in_backticks(found[1]), where
    )


def _in_backticks(inside: str) -> str:
    name = inside.replace('""', '"').replace("`", "``")
    return f"`{name}`"


def _reason(error: Exception, known: Sequence[str]) -> str:
    reason = str(error)
    if "interrupted" in reason:
        return "it takes too long"
    if "too big" in reason:
        return f"it makes or reads a text of more than {LONGEST_TEXT:,} bytes"
    name = reason.partition("no such column: ")[2]
    return no_such_column(name, known) if name else reason


def no_such_column(name: str, known: Sequence[str]) -> str:
    """Words for a name that no column has, with the one that is nearly it."""
    close = difflib.get_close_matches(name.lower(), [one.lower() for one in known], 1)
    meant = [one for one in known if one.lower() in close]
    return f"no such column: {name}" + (f" (did you mean {meant[0]}?)" if meant else "")


def does_not_work(where: str, reason: str, known: Sequence[str]) -> ConditionError:
    """The error for a condition, whatever reads it."""
    return ConditionError(
        f"the filter {where!r} does not work: {reason}. Give a condition in SQL on "
        f"{', '.join(known)}; texts stand in 'single quotes'."
    )


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
        sqlite3.SQLITE_LIMIT_LENGTH: LONGEST_TEXT,
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
