"""Tables, csv and jsonl: the one reader of captions, of metadata and of published lists.

What it does not understand it refuses with the line, and columns that nobody reads are named: a table
that is read loosely trains on its test rows in silence.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgl_runtime.errors import TextError
from dgl_runtime.names import nfc
from dgl_runtime.tables.csv_cells import Cell, CsvError, csv_rows
from dgl_runtime.tables.text_files import line_at, numbered_lines, read_text

Words = Mapping[str, Sequence[str]]
"""Columns that are read, each with other words that people name it by."""

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_CLOSE = 0.75  # of difflib's ratio
_SHOWN = 40  # characters of what does not fit


@dataclass(frozen=True)
class Row:
    """One row: the line where it begins, from 1, and its cells by ``column_key``."""

    line: int
    cells: dict[str, Any]


@dataclass(frozen=True)
class LongCell:
    """A cell that goes on over several lines of a csv."""

    key: str
    line: int
    last_line: int


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes:
        path: The file.
        columns: ``column_key`` -> ``column_name``, in the file's order.
        unnamed: Numbers, from 1, of the columns of a csv that have no name; their cells are not kept.
        filled_unnamed: Those of them that hold something.
        rows: Of a csv each has every column, as text; of jsonl those it has, as JSON values.
        long_cells: Cells of a csv that hold line breaks.
    """

    path: Path
    columns: dict[str, str]
    unnamed: list[int]
    filled_unnamed: list[int]
    rows: list[Row]
    long_cells: list[LongCell]

    def notes(self, words: Words, passed_over: Iterable[str] = ()) -> list[str]:
        """What of the table is not read, or perhaps not as it was meant, in words.

        Args:
            words: The columns that are read; where all are, give every one.
            passed_over: Columns that are known and of no use.
        """
        unread = [name for key, name in self.columns.items() if key not in {*words, *passed_over}]
        close = _close(self.columns, words)
        named = [
            f"{name!r}, which looks like {close[name]}" if name in close else repr(name)
            for name in unread
        ] + [f"number {number}, which has no name" for number in self.filled_unnamed]
        notes = []
        if named:
            notes.append(
                f"{self.path} has columns that are not read: {'; '.join(named)}. "
                f"Columns that are read are {', '.join(words)}."
            )
        if self.long_cells:
            first = self.long_cells[0]
            notes.append(
                f"{self.path} has cells with line breaks, {len(self.long_cells):,} of them; the first goes "
                f"from line {first.line} to {first.last_line} in column {self.columns[first.key]}. If that "
                "is not meant, close its quotation marks."
            )
        return notes


def column_key(name: str) -> str:
    """Equal for names of columns that count as one: spaces around, case and Unicode's form do not matter."""
    return column_name(name).casefold()


def column_name(written: str) -> str:
    """A name without spaces around it, and without the characters of no width that editors leave."""
    return nfc(written.translate({0xFEFF: None, 0x200B: None}).strip())


def read_table(path: Path, needed: Sequence[str], words: Words) -> Table:
    """Read a .jsonl file, an object a line, or else a csv with a header.

    Args:
        path: The file, UTF-8.
        needed: Columns without which it is refused.
        words: All columns that the caller knows, to tell what a name may have meant.

    Raises:
        OSError: It cannot be read.
        TextError: It is no such table; the line is named.
    """
    return (_read_jsonl if _is_jsonl(path) else _read_csv)(path, needed, words)


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _read_csv(path: Path, needed: Sequence[str], words: Words) -> Table:
    text = read_text(path)
    _refuse_other_separators(path, text)
    rows = _filled_rows(path, text)
    header = next(rows, [])
    keys = [column_key(cell.text) for cell in header]
    columns: dict[str, str] = {}
    for cell in header:
        if column_key(cell.text):
            _add_column(columns, cell.text, f"{path} line {cell.line}")
    _require(path, columns, needed, words)
    unnamed = [number for number, key in enumerate(keys, start=1) if not key]
    filled: set[int] = set()
    found, long_cells = [], []
    for cells in rows:
        line = cells[0].line
        _fit(path, cells, len(keys))
        if [column_key(cell.text) for cell in cells] == keys:
            raise TextError(
                f"{path} line {line} is the header again. Take the line out; if several files were "
                "joined, look that all had these columns."
            )
        filled |= {number for number in unnamed if cells[number - 1].text.strip()}
        named = {key: cell for key, cell in zip(keys, cells, strict=True) if key}
        found.append(Row(line, {key: cell.text for key, cell in named.items()}))
        long_cells += [
            LongCell(key, cell.line, cell.last_line)
            for key, cell in named.items()
            if cell.last_line > cell.line
        ]
    return Table(path, columns, unnamed, sorted(filled), found, long_cells)


def _refuse_other_separators(path: Path, text: str) -> None:
    first = re.search(r"\S[^\r\n]*", text)
    if first is None:
        return
    if match := re.fullmatch(r'"?sep=(.)"?[ ,]*', first[0], re.IGNORECASE):
        raise TextError(
            f"{path} line {line_at(text[: first.start()])} is Excel's {first[0]!r}: it tells of "
            f"{_SEPARATORS.get(match[1], repr(match[1]))} between columns. Take the line out, and separate "
            "columns by commas."
        )
    for mark in _SEPARATORS:
        if mark in first[0] and "," not in first[0]:
            raise _separated(path, mark)


def _separated(path: Path, mark: str) -> TextError:
    what = _SEPARATORS[mark]
    return TextError(
        f"{path} has {what} between its columns, expected commas. Save it with commas."
    )


def _require(path: Path, columns: Mapping[str, str], needed: Sequence[str], words: Words) -> None:
    if not (absent := [key for key in needed if key not in columns]):
        return
    names = list(columns.values())
    for mark in _SEPARATORS:
        if {column_key(part) for name in names for part in name.split(mark)} & set(absent):
            raise _separated(path, mark)
    meant = [f"{name!r} looks like {key}" for name, key in _close(columns, words).items()]
    close = f" ({', '.join(meant)})" if meant else ""
    where = "its objects have" if _is_jsonl(path) else "its first line has"
    raise TextError(
        f"{path} has no column {' and no column '.join(absent)}; {where} "
        f"{', '.join(names) or 'nothing'}{close}. Name the columns there."
    )


def _filled_rows(path: Path, text: str) -> Iterator[list[Cell]]:
    """The rows that hold anything: spreadsheets write empty ones as commas."""
    try:
        for row in csv_rows(text):
            if any(cell.text.strip() for cell in row):
                yield row
    except CsvError as fault:
        raise TextError(f"{path} line {fault.line} {fault}") from fault


def _fit(path: Path, cells: list[Cell], count: int) -> None:
    """Drop empty cells beyond the header's, as spreadsheets write them; refuse other numbers of cells."""
    while len(cells) > count and not cells[-1].text.strip():
        cells.pop()
    if len(cells) != count:
        remedy = (
            "Put a text that has a comma in double quotation marks."
            if len(cells) > count
            else "Give each column a cell, an empty one if need be."
        )
        raise TextError(
            f"{path} line {cells[0].line} has {len(cells)} cells, its header has {count}. {remedy}"
        )


def _read_jsonl(path: Path, needed: Sequence[str], words: Words) -> Table:
    columns: dict[str, str] = {}
    rows = []
    for line, text in numbered_lines(path):
        where = f"{path} line {line}"
        try:
            value = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{where} is not JSON: {error}. Give one object a line.") from error
        if not isinstance(value, _Pairs):
            raise TextError(f"{where} is {text.strip()[:_SHOWN]}, expected an object.")
        own: dict[str, str] = {}
        for name, _ in value:
            _add_column(own, name, where)
        columns |= {key: name for key, name in own.items() if key not in columns}
        rows.append(Row(line, {column_key(name): inner for name, inner in value}))
    if rows:
        _require(path, columns, needed, words)
    return Table(path, columns, [], [], rows, [])


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written: a dict would drop all but the last of equal keys."""


def _add_column(columns: dict[str, str], written: str, where: str) -> None:
    key = column_key(written)
    if key in columns:
        raise TextError(
            f"{where} has columns {columns[key]!r} and {written!r}, which count as one: case and spaces "
            "around do not matter. Rename one; each needs a name of its own."
        )
    columns[key] = column_name(written)


def _close(columns: Mapping[str, str], words: Words) -> dict[str, str]:
    """Names that are not read -> the column, absent here, that each looks like."""
    absent = {key: words[key] for key in words if key not in columns}
    unread = [name for key, name in columns.items() if key not in words]
    found = {name: _closest(name, absent) for name in unread}
    return {name: key for name, key in found.items() if key is not None}


def _closest(name: str, words: Words) -> str | None:
    """The column that a name looks like; None: it looks like none."""
    parts = [part.lower() for part in re.findall(r"[A-Z]?[^\W_A-Z]+|[A-Z]+", name)]
    plain = "_".join(parts)
    said = [key for key, others in words.items() if set(parts) & {key, *others}]
    spelt = [
        key
        for key, others in words.items()
        if difflib.get_close_matches(plain, [key, *others], 1, _CLOSE)
    ]
    alike = {key: difflib.SequenceMatcher(None, plain, key).ratio() for key in said or spelt}
    return max(alike, key=alike.__getitem__) if alike else None
