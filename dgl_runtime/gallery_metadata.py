"""What a csv says of videos, such as titles and cameras: columns that a search can filter by."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgl_runtime.errors import ConfigError
from dgl_runtime.gallery_records import Records
from dgl_runtime.gallery_where import COLUMNS, quoted

VIDEO = "video"
"""The csv's column that names the video: a path, absolute or from the csv's folder on."""

Value = str | int | float | None
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # not 007, which is a name
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[-+]?[0-9]{1,2})?", re.IGNORECASE)


@dataclass(frozen=True)
class MetadataReport:
    """What a csv brought: rows whose video is in the gallery, and names of those that are not."""

    matched: int
    unmatched: list[str]


def read_metadata(records: Records, path: Path) -> MetadataReport:
    """Take a csv into a gallery; a video it names loses what was known of it before.

    Args:
        records: Of a gallery open for writing.
        path: A csv with a header, UTF-8. A column of whole numbers or of numbers is stored as such, others
            as text; an empty cell is NULL.

    Raises:
        ConfigError: It is no such csv.
        GalleryError: The disk refused.
    """
    columns, rows = read_table(path)
    types = [_type([row[number] for row in rows]) for number in range(len(columns))]
    video_ids = {
        os.fsdecode(file): number
        for file, number in records.rows("SELECT path, video_id FROM files")
    }
    found, unmatched = {}, []
    for row in rows:
        values = dict(zip(columns, map(_value, types, row), strict=True))
        name = row[columns.index(VIDEO)]
        video_id = video_ids.get(os.path.realpath(path.parent / name))
        if video_id is None:
            unmatched.append(name)
        else:
            values.pop(VIDEO)
            found[video_id] = values
    _write(records, [name for name in columns if name != VIDEO], found)
    return MetadataReport(len(found), unmatched)


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of such a csv.

    Raises:
        ConfigError: It is none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a csv in UTF-8: {error}.") from error
    columns = [name.strip() for name in columns]
    if VIDEO not in columns:
        raise ConfigError(f"{path} has columns {columns}, expected one named {VIDEO!r} among them.")
    reserved = (*COLUMNS, "video_id")
    taken = [name for name in columns if name != VIDEO and (not name or name.lower() in reserved)]
    if taken or len({name.lower() for name in columns}) < len(columns):
        raise ConfigError(
            f"{path} has columns {columns}; each needs a name of its own, other than {', '.join(reserved)}."
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise ConfigError(
                f"{path} line {number} has {len(row)} cells, its header has {len(columns)}. Put texts "
                'that contain commas into "quotes".'
            )
    return columns, rows


def _type(cells: Iterable[str]) -> Callable[[str], Value]:
    """The first of int, float and str that takes every cell that is not empty."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    for kind, form in ((int, _WHOLE), (float, _NUMBER)):
        if filled and all(form.fullmatch(cell) for cell in filled):
            return kind
    return str


def _value(kind: Callable[[str], Value], cell: str) -> Value:
    return kind(cell) if cell.strip() else None


def _write(records: Records, columns: Sequence[str], found: dict[int, dict[str, Value]]) -> None:
    with records.change() as connection:
        known = {name.lower() for name in records.metadata_columns()}
        for name in columns:
            if name.lower() not in known:
                connection.execute(f"ALTER TABLE metadata ADD COLUMN {quoted(name)}")
        names = ", ".join(["video_id", *map(quoted, columns)])
        marks = ", ".join("?" * (1 + len(columns)))
        connection.executemany(
            f"INSERT OR REPLACE INTO metadata ({names}) VALUES ({marks})", _rows(columns, found)
        )


def _rows(columns: Sequence[str], found: dict[int, dict[str, Value]]) -> Iterator[list[Value]]:
    for video_id, values in found.items():
        yield [video_id, *(values[name] for name in columns)]
