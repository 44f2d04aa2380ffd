"""A picture for people: what a search found, as strips of frames with the weight of each frame."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

FRAME_SIDE = 128
"""Pixels: larger frames are shrunk to it, smaller ones enlarged as far as whole pixels allow."""

FRAMES_PER_LINE = 12
"""Longer clips go on in a further line."""

_MIN_WIDTH = 720
_MARGIN, _GAP = 28, 6
_QUERY_SIZE, _TITLE_SIZE, _WEIGHT_SIZE = 26, 17, 13
_QUERY_HEIGHT, _TITLE_HEIGHT, _BAR_HEIGHT, _WEIGHT_HEIGHT = 46, 27, 6, 20
_AFTER_LINE, _AFTER_HIT, _AFTER_ROW = 6, 14, 22
_PAPER, _INK, _QUIET, _RULE = "#ffffff", "#1c1c1e", "#6b6b70", "#d8d8dc"
_TRACK, _BAR = "#ececef", "#2f6db5"
# Dashes and quotation marks that the font of Pillow lacks.
_PLAIN = str.maketrans("\u2013\u2014\u2018\u2019\u201c\u201d", "--''\"\"")


@dataclass(frozen=True)
class SheetHit:
    """One clip that was found.

    Attributes:
        title: One line about it: rank, file, from when to when, similarity.
        frames: Its frames, uint8 [F, 3, S, S] RGB.
        weights: How much each frame counted, float [F], 0 to 1.
    """

    title: str
    frames: NDArray[np.uint8]
    weights: NDArray[np.floating]


@dataclass(frozen=True)
class SheetRow:
    """A query and the clips found for it, best first.

    Attributes:
        query: The text that was searched.
        hits: The clips; may be empty.
    """

    query: str
    hits: Sequence[SheetHit]


def draw_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Draw queries and their hits into one PNG file.

    Each frame stands over a bar and a percentage for its weight; the bar is full for the largest
    weight of the sheet, so bars can be compared across hits. Text too long is cut with an
    ellipsis; characters the font lacks become boxes.

    Args:
        path: The file to write; missing folders are made, an old file is replaced.
        rows: The queries in the order to show.

    Raises:
        ValueError: If there are no rows, or frames and weights have no fitting shapes.
        OSError: If the file cannot be written.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise ValueError("rows is empty, expected one query or more.")
    for row in rows:
        for hit in row.hits:
            _check(hit)
    hits = [hit for row in rows for hit in row.hits]
    full = max((float(_clean(hit.weights).max()) for hit in hits), default=0.0) or 1.0
    width = max([_MIN_WIDTH, *(_strip_width(hit) + 2 * _MARGIN for hit in hits)])
    height = sum(_row_height(row) for row in rows) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row in rows:
        _draw_row(sheet, draw, row, top, full)
        top += _row_height(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def _check(hit: SheetHit) -> None:
    shape = hit.frames.shape
    fits = hit.frames.ndim == 4 and shape[0] > 0 and shape[1] == 3 and shape[2] == shape[3] > 0
    if not fits or hit.frames.dtype != np.uint8 or hit.weights.shape != shape[:1]:
        raise ValueError(
            f"hit {hit.title!r} has frames {hit.frames.dtype} {list(shape)} and weights "
            f"{list(hit.weights.shape)}, expected uint8 [F, 3, S, S] and [F]."
        )


def _clean(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights between 0 and 1, whatever was given, float64 [F]."""
    return np.clip(np.nan_to_num(weights.astype(np.float64), nan=0.0), 0.0, 1.0)


def _side(hit: SheetHit) -> int:
    """Pixels of a drawn frame."""
    size = hit.frames.shape[3]
    return size * (FRAME_SIDE // size) if size <= FRAME_SIDE else FRAME_SIDE


def _strip_width(hit: SheetHit) -> int:
    return min(len(hit.frames), FRAMES_PER_LINE) * (_side(hit) + _GAP) - _GAP


def _line_height(hit: SheetHit) -> int:
    return _side(hit) + _GAP + _BAR_HEIGHT + _WEIGHT_HEIGHT + _AFTER_LINE


def _hit_height(hit: SheetHit) -> int:
    lines = -(-len(hit.frames) // FRAMES_PER_LINE)
    return _TITLE_HEIGHT + lines * _line_height(hit) + _AFTER_HIT


def _row_height(row: SheetRow) -> int:
    hits = sum(_hit_height(hit) for hit in row.hits) if row.hits else _TITLE_HEIGHT + _AFTER_HIT
    return _MARGIN + _QUERY_HEIGHT + hits + _AFTER_ROW - _AFTER_HIT


def _draw_row(sheet: Image, draw: ImageDraw, row: SheetRow, top: int, full: float) -> None:
    """Draw a query and its hits below ``top``."""
    right = sheet.width - _MARGIN
    if top:
        draw.line((_MARGIN, top, right, top), fill=_RULE)
    top += _MARGIN
    _write(draw, (_MARGIN, top), row.query, _QUERY_SIZE, _INK, right - _MARGIN)
    top += _QUERY_HEIGHT
    if not row.hits:
        _write(draw, (_MARGIN, top), "nothing found", _TITLE_SIZE, _QUIET, right - _MARGIN)
    for hit in row.hits:
        _write(draw, (_MARGIN, top), hit.title, _TITLE_SIZE, _QUIET, right - _MARGIN)
        _draw_strip(sheet, draw, hit, top + _TITLE_HEIGHT, full)
        top += _hit_height(hit)


def _draw_strip(sheet: Image, draw: ImageDraw, hit: SheetHit, top: int, full: float) -> None:
    """Draw the frames of a hit, each over its weight; ``full`` is the weight of a full bar."""
    from PIL import Image

    side = _side(hit)
    size = hit.frames.shape[3]
    how = Image.Resampling.NEAREST if size <= side else Image.Resampling.LANCZOS
    for i, (pixels, weight) in enumerate(zip(hit.frames, _clean(hit.weights), strict=True)):
        line, column = divmod(i, FRAMES_PER_LINE)
        left, y = _MARGIN + column * (side + _GAP), top + line * _line_height(hit)
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        sheet.paste(picture.resize((side, side), how), (left, y))
        y += side + _GAP
        draw.rectangle((left, y, left + side - 1, y + _BAR_HEIGHT - 1), fill=_TRACK)
        length = round(side * min(float(weight) / full, 1.0))
        if length:
            draw.rectangle((left, y, left + length - 1, y + _BAR_HEIGHT - 1), fill=_BAR)
        text = f"{100 * weight:.0f} %"
        _write(draw, (left, y + _BAR_HEIGHT + 3), text, _WEIGHT_SIZE, _QUIET, side)


def _write(
    draw: ImageDraw, corner: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """Write one line of text, cut to a width in pixels."""
    from PIL.ImageFont import load_default

    font = load_default(size)
    draw.text(corner, _shorten(text, font, width), fill=colour, font=font)


def _shorten(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is longer than ``width`` pixels."""
    printable = text.encode("utf-8", "replace").decode("utf-8").translate(_PLAIN)
    line = "".join(" " if sign.isspace() else sign for sign in printable).strip()
    if font.getlength(line) <= width:
        return line
    kept = bisect_right(
        range(len(line)), width, key=lambda length: ceil(font.getlength(f"{line[:length]}…"))
    )
    return f"{line[: max(kept - 1, 0)].rstrip()}…"
