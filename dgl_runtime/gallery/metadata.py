"""What a table says of videos, such as titles and cameras: columns that a search can filter by."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgl_runtime.command import report_note
from dgl_runtime.errors import ConfigError
from dgl_runtime.gallery.clips import Value
from dgl_runtime.gallery.filters import COLUMNS, LONGEST_TEXT, quoted
from dgl_runtime.gallery.records import Records
from dgl_runtime.gallery.sqlite import stored_as
from dgl_runtime.names import Files, Named, nfc
from dgl_runtime.tables.table import Row, Table, column_key, read_table
from dgl_runtime.tables.text_files import is_text

VIDEO = "video"
"""The column that names the video: a path, absolute or from the table's folder on."""

MOST_COLUMNS = 1_900  # SQLite takes 2,000, of which a filter needs some

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # not 007, which is a name
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[-+]?[0-9]{1,2})?", re.IGNORECASE)


@dataclass(frozen=True)
class Metadata:
    """What a csv says: its columns but ``VIDEO``, and of each file, by its path, the row and the values."""

    path: Path
    columns: list[str]
    rows: list[tuple[str, Row, list[Value]]]


@dataclass(frozen=True)
class MetadataReport:
    """What a csv brought: rows whose video is in the gallery, and names of those that are not."""

    matched: int
    unmatched: list[str]


def read_metadata(records: Records, path: Path, tell: Callable[[str], None]) -> MetadataReport:
    """Take a table into a gallery; a video it names loses what was known of it before.

    Args:
        records: Of a gallery open for writing.
        path: As :func:`parse_metadata` takes it.
        tell: Takes notes: those of ``parse_metadata`` and of :func:`match_videos`.

    Raises:
        ConfigError: It is no such table, or with it the gallery would have too many columns.
        GalleryError: The disk refused.
    """
    metadata = parse_metadata(path, tell)
    known = records.rows("SELECT path, video_id FROM files")
    found, unmatched = match_videos(
        metadata, {os.fsdecode(file): number for file, number in known}, tell
    )
    write_values(records, metadata.columns, found, path)
    return MetadataReport(len(found), unmatched)


def match_videos(
    metadata: Metadata, files: Mapping[str, int], tell: Callable[[str], None]
) -> tuple[dict[int, list[Value]], list[str]]:
    """The values of each video that a table names, by its number, and names of those that are not there.

    Args:
        metadata: The table.
        files: The numbers of the videos that files hold.
        tell: Takes notes on rows about files with the same content, of which the last counts.
    """
    video_ids = Named(files)
    found: dict[int, tuple[Row, list[Value]]] = {}
    unmatched = []
    for file, row, values in metadata.rows:
        video_id = video_ids.find(file)
        if video_id is None:
            name = str(row.cells[VIDEO]).strip()
            near = video_ids.similar(file)
            unmatched.append(f"{name} (the gallery holds {near})" if near else name)
            continue
        if video_id in found and found[video_id][1] != values:
            tell(
                f"{metadata.path} lines {found[video_id][0].line} and {row.line} are about files with the "
                f"same content, which are one video; line {row.line} counts."
            )
        found[video_id] = row, values
    return {video_id: values for video_id, (_, values) in found.items()}, unmatched


def merge_columns(
    columns: Sequence[str], known: Iterable[str], source: object
) -> tuple[list[str], list[str]]:
    """The names under which a gallery keeps the columns of a source, and those of them that are new to it.

    Raises:
        ConfigError: It would have too many.
    """
    names = {column_key(name): name for name in known}
    new = {column_key(name): name for name in columns if column_key(name) not in names}
    if len(names) + len(new) > MOST_COLUMNS:
        raise ConfigError(
            f"with {source} the gallery would have {len(names) + len(new):,} columns of metadata, "
            f"expected at most {MOST_COLUMNS:,}. Leave some out."
        )
    return [(names | new)[column_key(name)] for name in columns], list(new.values())


def parse_metadata(path: Path, tell: Callable[[str], None] = report_note) -> Metadata:
    """Read a table of metadata.

    Args:
        path: A csv with a header, or jsonl, in UTF-8. A column of whole numbers or of numbers is stored as
            such, others as text; an empty cell is NULL.
        tell: Takes what a user should know of it, such as cells with line breaks.

    Raises:
        ConfigError: It is no such table.
    """
    try:
        table = read_table(path, [VIDEO], {VIDEO: ("file", "filename", "path", "name")})
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read as a table: {error.strerror}. Check the path."
        ) from error
    _refuse_columns(table)
    for note in table.notes(dict.fromkeys(table.columns, ())):
        tell(note)
    if not table.rows:
        tell(f"{path} has a header and no row, so it says nothing of any video.")
    keys = [key for key in table.columns if key != VIDEO]
    cells = [[_cell(row, key, table) for key in keys] for row in table.rows]
    columns = list(zip(*cells, strict=True))
    kinds = [_kind(column) for column in columns]
    for key, column in zip(keys, columns, strict=False):
        if (odd := _first_among_numbers(column)) is not None:
            tell(
                f"{path} line {table.rows[odd].line}: {table.columns[key]} is {column[odd].strip()!r} among "
                "numbers, so filters compare the whole column as text. Leave such cells empty."
            )
    rows = [
        (file, row, [_value(kind, cell) for kind, cell in zip(kinds, texts, strict=True)])
        for (file, row), texts in zip(_files_of(table), cells, strict=True)
    ]
    return Metadata(path, [table.columns[key] for key in keys], rows)


def _refuse_columns(table: Table) -> None:
    taken = [name for key, name in table.columns.items() if key in COLUMNS and key != VIDEO]
    taken += [f"number {number}, which has no name" for number in table.unnamed]
    if taken:
        raise ConfigError(
            f"{table.path} has the column {taken[0]}; each needs a name of its own, other than "
            f"{', '.join(COLUMNS)}. Name it otherwise."
        )
    if len(table.columns) > MOST_COLUMNS:
        raise ConfigError(
            f"{table.path} has {len(table.columns):,} columns, expected at most {MOST_COLUMNS:,}. "
            "Leave some out."
        )


def _cell(row: Row, key: str, table: Table) -> str:
    """A cell as a csv would hold it."""
    value = row.cells.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ConfigError(
            f"{table.path} line {row.line}: {table.columns[key]} is {value!r}, expected a text or a number."
        )
    text = "" if value is None else nfc(str(value))
    if not is_text(text):
        raise ConfigError(
            f"{table.path} line {row.line}: {table.columns[key]} is {value!r}, which holds a character that "
            "no text has."
        )
    if (size := len(text.encode())) > LONGEST_TEXT:
        raise ConfigError(
            f"{table.path} line {row.line}: {table.columns[key]} has {size:,} bytes, a filter takes texts of "
            f"at most {LONGEST_TEXT:,}. Shorten it."
        )
    return text


def _files_of(table: Table) -> Iterator[tuple[str, Row]]:
    """The path of each row's file, whether it is there or not; two rows about one file are refused."""
    files, lines = Files(), dict[str, int]()
    for row in table.rows:
        name = str(row.cells.get(VIDEO) or "").strip()
        if not name or "\0" in name:
            raise ConfigError(f"{table.path} line {row.line} has no {VIDEO}. Fill it in.")
        file = os.path.realpath(files.find(table.path.parent / name))
        key = file if os.path.lexists(file) else nfc(file)
        if key in lines:
            raise ConfigError(
                f"{table.path} lines {lines[key]} and {row.line} are both about {name}. Keep one of them."
            )
        lines[key] = row.line
        yield file, row


def _kind(cells: Iterable[str]) -> Callable[[str], Value]:
    """The first of int, float and str that takes every cell that is not empty."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    for kind, form in ((int, _WHOLE), (float, _NUMBER)):
        if filled and all(form.fullmatch(cell) for cell in filled):
            return kind
    return str


def _first_among_numbers(cells: Sequence[str]) -> int | None:
    """The first cell that makes a text of a column that mostly holds numbers."""
    filled = {number: cell.strip() for number, cell in enumerate(cells) if cell.strip()}
    odd = [number for number, cell in filled.items() if not _NUMBER.fullmatch(cell)]
    is_code = any(filled[number].isdigit() for number in odd)  # 007 is as it is meant to be
    return odd[0] if 0 < len(odd) < len(filled) / 2 and not is_code else None


def _value(kind: Callable[[str], Value], cell: str) -> Value:
    return kind(cell) if cell.strip() else None


def write_values(
    records: Records,
    columns: Sequence[str],
    found: Mapping[int, Sequence[Value]],
    source: object,
) -> None:
    """Say what is known of videos, by their number, in place of what was known before.

    Raises:
        ConfigError: With the columns of this source the gallery would have too many.
    """
    stored, new = merge_columns(columns, records.metadata_columns(), source)
    names = ", ".join(["video_id", *(quoted(stored_as(name)) for name in stored)])
    marks = ", ".join("?" * (1 + len(stored)))
    with records.change() as connection:
        for name in new:
            connection.execute(f"ALTER TABLE metadata ADD COLUMN {quoted(stored_as(name))}")
        connection.executemany(
            f"INSERT OR REPLACE INTO metadata ({names}) VALUES ({marks})",
            [[video_id, *values] for video_id, values in found.items()],
        )
