"""The cells of a csv, strictly: a quotation mark that is not closed would swallow the rows behind it.

Python's csv takes stray quotation marks for text and does not say where one that stays open begins.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dgl_runtime.tables.text_files import BREAK, line_at

_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')
_PLAIN = re.compile(r'[^",\r\n]*')


@dataclass(frozen=True)
class Cell:
    """A text and the lines, from 1, where it begins and ends."""

    text: str
    line: int
    last_line: int


class CsvError(ValueError):
    """What is wrong, and on which line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def csv_rows(text: str) -> Iterator[list[Cell]]:
    """The cells of each row, between commas; a blank line is a row of one empty cell.

    Raises:
        CsvError: A quotation mark is not closed, or stands where none may.
    """
    at, line = 0, 1
    cells: list[Cell] = []
    while at < len(text) or cells:
        cell, at = _cell(text, at, line)
        cells.append(cell)
        line = cell.last_line
        if text.startswith(",", at):
            at += 1
            continue
        yield cells
        cells = []
        if end := BREAK.match(text, at):
            at, line = end.end(), line + 1


def _cell(text: str, at: int, line: int) -> tuple[Cell, int]:
    """The cell that begins at a place, and the place behind it."""
    if not text.startswith('"', at):
        end = _PLAIN.match(text, at).end()  # type: ignore[union-attr]  # the empty text matches
        if text.startswith('"', end):
            raise CsvError(
                line,
                "has a quotation mark inside a cell that does not begin with one. Put the whole cell "
                "in double quotation marks and write each of its own twice.",
            )
        return Cell(text[at:end], line, line), end
    quoted = _QUOTED.match(text, at)
    if quoted is None:
        raise CsvError(line, "opens a quotation mark that is never closed. Close it.")
    end, last_line = quoted.end(), line + line_at(quoted[1]) - 1
    if end < len(text) and text[end] not in ",\r\n":
        where = "" if last_line == line else f" on line {last_line}"
        raise CsvError(
            line,
            f"opens a quotation mark that is closed{where} in the middle of a cell. Close it at the "
            "cell's end, and write each quotation mark that is text twice.",
        )
    return Cell(quoted[1].replace('""', '"'), line, last_line), end
