"""Data sets by name, their splits, and the user's own tables of captioned clips."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dgl_runtime.command import report_note
from dgl_runtime.errors import ConfigError
from dgl_runtime.names import Files, find_path
from dgl_runtime.tables.table import Table, Words, read_table
from dgl_runtime.tables.text_files import BREAK, is_text
from dgl_runtime.times import read_seconds
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.published import PUBLISHED, check_data_root, read_published
from dgl_train.shapes.clips import SPLITS, make_shapes

__all__ = [
    "SHAPES_FOLDER",
    "CaptionedClip",
    "read_dataset",
    "select_split",
    "shared_videos",
    "split_train",
    "training_parts",
    "warn_of_shared_videos",
]

COLUMNS: Words = {
    "video": ("file", "filename", "path", "clip", "name"),
    "caption": ("captions", "text", "sentence", "description", "title"),
    "start_s": ("start", "begin", "from", "onset"),
    "end_s": ("end", "stop", "to", "until", "offset"),
    "split": ("subset", "partition", "set", "fold"),
    "reversed_caption": ("reversed", "reverse", "backwards"),
}
"""Columns of a file of captioned clips, each with other words that people name it by."""

_ROWS = (".csv", ".jsonl")
SHAPES_FOLDER = Path("shapes")  # where the moving shapes are made unless told otherwise


def read_dataset(
    name: str,
    data_root: Path | None = None,
    *,
    tell: Callable[[str], None] = report_note,
) -> list[CaptionedClip]:
    """Read all splits of a data set, whether its videos are there or not.

    ``dgl_train.data.verify.verify_videos`` keeps the clips that can be read.

    Args:
        name: A public data set (``dgl_train.data.published.PUBLISHED``), ``shapes`` (made on the spot
            if it is not there), or a .csv or .jsonl file with
            ``video`` and ``caption`` and, as it needs, ``start_s``, ``end_s``, ``split`` (all rows
            are train without it) and ``reversed_caption``.
        data_root: The folder of the data set, or the one that videos in a file are relative to;
            None: ``./shapes``, or the folder of the file; a public data set needs it.
        tell: Takes what a user should know of a file of one's own, such as columns that are not read.

    Raises:
        ConfigError: Unknown data set, no data root, or an annotation file is missing or has a
            fault.
    """
    path = Path(name)
    if data_root is not None:
        data_root = find_path(data_root)
    if name in _NAMED:
        clips = _NAMED[name](data_root)
    elif path.suffix.lower() in _ROWS:
        if data_root is not None:
            check_data_root(data_root)
        clips = _read_file(path, data_root or path.parent, tell)
    else:
        raise ConfigError(
            f"data set {name!r} is not known. Give {', '.join(_NAMED)}, or a file that ends in "
            f"{' or '.join(_ROWS)}."
        )
    if not clips:
        raise ConfigError(f"data set {name} has no clips. Give one row for each caption.")
    return clips


def select_split(clips: Sequence[CaptionedClip], split: str, name: str) -> list[CaptionedClip]:
    """The clips of one split; ``all`` for every clip.

    Raises:
        ConfigError: If the data set has no such clip.
    """
    found = [clip for clip in clips if split in (clip.split, "all")]
    if not found:
        have = ", ".join(sorted({clip.split for clip in clips}))
        raise ConfigError(
            f"data set {name} has no clips of split {split!r}; it has {have}. "
            "Choose one of these, or all."
        )
    return found


def warn_of_shared_videos(clips: Sequence[CaptionedClip], split: str) -> str | None:
    """One line if videos of a split are in another split too; None: they are not, or it is ``all``.

    No error: clips cut from different parts of a video may be in different splits on purpose.
    """
    shared = shared_videos(clips, split)
    if not shared:
        return None
    return (
        f"Warning: {len(shared)} videos of split {split} are in another split too, the first is "
        f"{shared[0]}: figures on such videos are too good. Keep each video in one split."
    )


def shared_videos(clips: Sequence[CaptionedClip], split: str) -> list[Path]:
    """The videos of a split that are in another split too, in the order given."""
    others = {clip.video for clip in clips if clip.split != split}
    own = dict.fromkeys(clip.video for clip in clips if clip.split == split)
    return [video for video in own if video in others]


def training_parts(
    clips: Sequence[CaptionedClip], name: str, *, fraction: float, seed: int
) -> tuple[list[CaptionedClip], list[CaptionedClip]]:
    """The clips to train on and those to select by: the val split, or else a part of train."""
    train = select_split(clips, "train", name)
    val = [clip for clip in clips if clip.split == "val"]
    return (train, val) if val else split_train(train, fraction=fraction, seed=seed)


def split_train(
    clips: Sequence[CaptionedClip], *, fraction: float, seed: int
) -> tuple[list[CaptionedClip], list[CaptionedClip]]:
    """Hold out a part of the training clips; every video is in one part with all its clips.

    Returns:
        The clips to train on and those held out, each in the order given.

    Raises:
        ConfigError: If there are fewer than 2 videos.
    """
    videos = sorted({clip.video for clip in clips})
    if len(videos) < 2:
        raise ConfigError(
            f"the training clips come from {len(videos)} video, expected 2 or more: a part is held "
            "out for validation. Add videos, or a split column with val."
        )
    count = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    chosen = np.random.default_rng(seed).permutation(len(videos))[:count]
    held_out = {videos[number] for number in chosen}
    return (
        [clip for clip in clips if clip.video not in held_out],
        [clip for clip in clips if clip.video in held_out],
    )


def _read_shapes(data_root: Path | None) -> list[CaptionedClip]:
    folder = data_root or SHAPES_FOLDER
    if not (folder / "captions.csv").is_file():
        make_shapes(folder)
    return _read_file(folder / "captions.csv", folder, report_note)


_NAMED: dict[str, Callable[[Path | None], list[CaptionedClip]]] = {
    "shapes": _read_shapes,
    **{name: partial(read_published, name) for name in PUBLISHED},
}


def _read_file(path: Path, folder: Path, tell: Callable[[str], None]) -> list[CaptionedClip]:
    try:
        table = read_table(path, ("video", "caption"), COLUMNS)
    except OSError as error:
        raise ConfigError(
            f"data set {path} cannot be read: {error.strerror}. Check the path."
        ) from error
    for cell in table.long_cells:
        if cell.key in COLUMNS:
            raise ConfigError(
                f"{path} line {cell.line}: {cell.key} goes on to line {cell.last_line}. Close its quotation "
                "mark on its line; a text may hold line breaks in a .jsonl file."
            )
    for note in [*table.notes(COLUMNS), *_broken_captions(table), *_empty_splits(table)]:
        tell(note)
    files = Files()
    return [_make_clip(row.cells, folder, files, f"{path} line {row.line}") for row in table.rows]


def _broken_captions(table: Table) -> list[str]:
    lines = [
        row.line for row in table.rows if BREAK.search(str(row.cells.get("caption", "")).strip())
    ]
    if not lines:
        return []
    return [
        f"{table.path} has captions with line breaks, {len(lines):,} of them, the first on line {lines[0]}; "
        "a line break is read as a space."
    ]


def _empty_splits(table: Table) -> list[str]:
    lines = [row.line for row in table.rows if not str(row.cells.get("split") or "").strip()]
    if not 0 < len(lines) < len(table.rows):
        return []
    return [
        f"{table.path} has rows without a split, {len(lines):,} of them, the first on line {lines[0]}; "
        "they are read as train, beside others that state one."
    ]


def _make_clip(row: dict[str, Any], folder: Path, files: Files, where: str) -> CaptionedClip:
    start_s, end_s = (_seconds(row, key, where) for key in ("start_s", "end_s"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ConfigError(
            f"{where}: end_s is {end_s:g}, expected more than start_s {start_s or 0:g}."
        )
    split = (_text(row, "split", where) or "train").casefold()
    if split not in SPLITS:
        raise ConfigError(f"{where}: split is {split!r}, expected one of {', '.join(SPLITS)}.")
    video, caption = (_text(row, key, where) for key in ("video", "caption"))
    if video is None or caption is None:
        raise ConfigError(f"{where} has no {'caption' if video else 'video'}. Fill it in.")
    reversed_caption = _text(row, "reversed_caption", where)
    path = files.find(folder / video)
    return CaptionedClip(path, caption, start_s, end_s, split, reversed_caption)


def _text(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if not (value is None or isinstance(value, str)):
        raise ConfigError(f"{where}: {key} is {value!r}, expected a text.")
    text = (value or "").strip()
    # A path may hold bytes that are no text, as Python writes them; a caption may not.
    if "\0" in text or (key != "video" and not is_text(text)):
        raise ConfigError(f"{where}: {key} is {value!r}, which holds a character that no text has.")
    return text or None


def _seconds(row: dict[str, Any], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        seconds = float(value) if is_number else read_seconds(value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{where}: {key} is {value!r}, expected seconds from 0.")
    return seconds
