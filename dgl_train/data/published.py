"""The public data sets: how each one's annotation files are read, and what is published about it.

A set is a function from a data root to its captions; finding videos, counting, checking and
training are shared by all. ``docs/datasets.md`` says where files come from and where they lie.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dgl_runtime.command import report_note
from dgl_runtime.errors import ConfigError
from dgl_runtime.media.video_files import may_be_video
from dgl_runtime.names import Named
from dgl_runtime.tables.table import Words, read_table
from dgl_runtime.tables.text_files import numbered_lines, read_list, read_text
from dgl_train.data.annotation_files import (
    VIDEO_FOLDER,
    index_videos,
    load_plain_pickle,
    read_annotation,
)
from dgl_train.data.captioned_clip import CaptionedClip

Captions = dict[str, list[str]]
"""Captions of each id, in the order of the files; an id without a caption has an empty list."""


@dataclass(frozen=True)
class Counts:
    """Sizes of one split as published; None: not published."""

    videos: int | None = None
    captions: int | None = None
    ids_without_captions: int = 0


@dataclass(frozen=True)
class PublishedSet:
    """A public data set.

    Attributes:
        read: Data root -> captions of each split.
        expected: Sizes of each split.
        protocol: How it is evaluated, in words.
        several_captions: A clip of the test split has several captions: ranks are grouped by it.
        end_s: Where every clip ends, seconds; None: at the end of its video.
        stems: Id -> file names without extension that its video may have, the likeliest first.
    """

    read: Callable[[Path], dict[str, Captions]]
    expected: Mapping[str, Counts]
    protocol: str
    several_captions: bool = False
    end_s: float | None = None
    stems: Callable[[str], tuple[str, ...]] = lambda video_id: (video_id,)


def several_captions(name: str) -> bool:
    """Whether a test clip of this data set has several captions, by the published protocol."""
    return name in PUBLISHED and PUBLISHED[name].several_captions


def read_published(name: str, data_root: Path | None) -> list[CaptionedClip]:
    """All captioned clips of a public data set, whether their videos are there or not.

    A missing video stands with the path where it would be found.

    Raises:
        ConfigError: No data root, or an annotation file is missing or not as published.
    """
    captions, folder = read_captions(name, data_root), data_root or Path()
    published, videos = PUBLISHED[name], Named(index_videos(folder))
    return [
        CaptionedClip(video, caption, end_s=published.end_s, split=split)
        for split, captions_of in captions.items()
        for video_id, texts in captions_of.items()
        for video in [_video_of(published.stems(video_id), videos, folder)]
        for caption in texts
    ]


def read_captions(name: str, data_root: Path | None) -> dict[str, Captions]:
    """Split -> id -> captions of a public data set, ids without a caption included.

    Raises:
        ConfigError: No data root, or an annotation file is missing or not as published.
    """
    if data_root is None:
        raise ConfigError(
            f"data set {name} is read from its folder, and none is given. Give it with "
            "--data-root; docs/datasets.md shows what lies there."
        )
    check_data_root(data_root)
    return PUBLISHED[name].read(data_root)


def check_data_root(data_root: Path) -> None:
    """Refuse a data root that is not there.

    Raises:
        ConfigError: It is no folder.
    """
    if not data_root.is_dir():
        raise ConfigError(f"data root {data_root} is not a folder. Check --data-root.")


def _video_of(stems: Iterable[str], videos: Named[Path], data_root: Path) -> Path:
    stems = list(stems)
    for stem in stems:
        if video := videos.find(stem):
            return video
    missing = [data_root / VIDEO_FOLDER / f"{stem}.mp4" for stem in stems]
    # A link that leads nowhere tells best which one is meant.
    return next((path for path in missing if path.is_symlink()), missing[0])


def _read_msrvtt(train_list: str, data_root: Path) -> dict[str, Captions]:
    captions = read_annotation(data_root, "MSRVTT_data.json", msrvtt_captions)
    train = read_annotation(data_root, train_list, msrvtt_ids)
    test = read_annotation(data_root, "MSRVTT_JSFUSION_test.csv", msrvtt_test)
    return {"train": _captions_of(train, captions), "test": test}


def msrvtt_ids(path: Path) -> list[str]:
    """MSRVTT_train.*.csv: one column, video_id."""
    return [video_id for (video_id,) in _columns(path, "video_id")]


def msrvtt_test(path: Path) -> Captions:
    """MSRVTT_JSFUSION_test.csv: key, vid_key, video_id, sentence."""
    rows = _columns(path, "video_id", "sentence", passed_over=("key", "vid_key"))
    return _grouped((video_id, sentence) for video_id, sentence in rows)


def msrvtt_captions(path: Path) -> Captions:
    """MSRVTT_data.json: sentences of video_id and caption; the rest is not read."""
    rows = json.loads(read_text(path))["sentences"]
    return _grouped((row["video_id"], row["caption"]) for row in rows)


def _columns(path: Path, *names: str, passed_over: Iterable[str] = ()) -> list[list[str]]:
    """The cells of some columns of a csv, in the order of the names."""
    words: Words = dict.fromkeys(names, ())
    table = read_table(path, names, words)
    for note in table.notes(words, passed_over):
        report_note(note)
    return [[row.cells[name].strip() for name in names] for row in table.rows]


def _read_lsmdc(data_root: Path) -> dict[str, Captions]:
    files = {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }
    return {split: read_annotation(data_root, name, lsmdc_rows) for split, name in files.items()}


def lsmdc_rows(path: Path) -> Captions:
    """A table of 6 columns between tabs without a header: the clip, four times, the sentence."""
    # Quotation marks are text here: not all of them are closed.
    rows = [(line, text.split("\t")) for line, text in numbered_lines(path)]
    for line, row in rows:
        if len(row) != 6:
            raise ValueError(f"line {line} has {len(row)} columns, expected 6")
    return _grouped((row[0], row[5]) for _, row in rows)


def _read_activitynet(data_root: Path) -> dict[str, Captions]:
    files = {"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")}
    return {
        split: _captions_of(
            read_annotation(data_root, ids, activitynet_ids),
            read_annotation(data_root, captions, activitynet_paragraphs),
        )
        for split, (ids, captions) in files.items()
    }


def activitynet_ids(path: Path) -> list[str]:
    """train_ids.json, val_ids.json: a list of ids that begin with v_."""
    return _texts(json.loads(read_text(path)))


def activitynet_paragraphs(path: Path) -> Captions:
    """train.json, val_1.json: id -> duration, timestamps, sentences; the sentences are joined."""
    entries = json.loads(read_text(path))
    return _grouped((key, " ".join(_texts(entry["sentences"]))) for key, entry in entries.items())


def _read_didemo(data_root: Path) -> dict[str, Captions]:
    return {
        split: _captions_of(
            read_annotation(data_root, f"{split}_list.txt", read_list),
            read_annotation(data_root, f"{split}_data.json", didemo_paragraphs),
        )
        for split in ("train", "val", "test")
    }


def didemo_paragraphs(path: Path) -> Captions:
    """*_data.json: a list of description and video; a video's descriptions are joined."""
    rows = json.loads(read_text(path))
    described = _grouped((row["video"], row["description"]) for row in rows)
    return {video: [" ".join(texts)] for video, texts in described.items() if texts}


def _stems_with_extension(video_id: str) -> tuple[str, ...]:
    """An id that is a file name; its video may have been converted to another extension."""
    path = Path(video_id)
    bare = path.stem if may_be_video(path) else video_id
    return bare, video_id


def _read_msvd(data_root: Path) -> dict[str, Captions]:
    captions = read_annotation(data_root, "raw-captions.pkl", msvd_captions)
    return {
        split: _captions_of(read_annotation(data_root, f"{split}_list.txt", read_list), captions)
        for split in ("train", "val", "test")
    }


def msvd_captions(path: Path) -> Captions:
    """raw-captions.pkl: id -> captions as lists of words."""
    return _grouped(
        (video_id, " ".join(_texts(words)))
        for video_id, captions in load_plain_pickle(path).items()
        for words in captions
    )


def _read_vatex(data_root: Path) -> dict[str, Captions]:
    captions = read_annotation(data_root, "ref_captions.json", vatex_captions)
    return {
        split: _captions_of(read_annotation(data_root, f"{split}_list.txt", read_list), captions)
        for split in ("train", "test")
    }


def vatex_captions(path: Path) -> Captions:
    """ref_captions.json: id -> captions."""
    entries = json.loads(read_text(path))
    return _grouped((key, text) for key, texts in entries.items() for text in _texts(texts))


def _grouped(pairs: Iterable[tuple[str, str]]) -> Captions:
    """Captions of each id, white space normalised; an empty one is none."""
    found: Captions = {}
    for video_id, text in pairs:
        captions = found.setdefault(video_id.strip(), [])
        if caption := " ".join(text.split()):
            captions.append(caption)
    return found


def _captions_of(ids: Iterable[str], captions: Captions) -> Captions:
    named = Named(captions)
    return {video_id: named.find(video_id) or [] for video_id in ids}


def _texts(values: object) -> list[str]:
    """The value itself if it is a list of texts: a text alone would pass for a list of letters."""
    if isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values):
        return list(values)
    raise TypeError(f"it holds {str(values)[:40]!r}, expected a list of texts")


_ONE_TO_ONE = "one caption a video"
_PARAGRAPH = "a paragraph a video: its captions joined"
_SEVERAL = "several captions a video; video to text: a video's best caption counts"
_JSFUSION = Counts(1_000, 1_000)

PUBLISHED: Mapping[str, PublishedSet] = {
    "msrvtt": PublishedSet(
        read=partial(_read_msrvtt, "MSRVTT_train.9k.csv"),
        expected={"train": Counts(9_000, 180_000), "test": _JSFUSION},
        protocol=f"1k-A test, {_ONE_TO_ONE}",
    ),
    "msrvtt-7k": PublishedSet(
        read=partial(_read_msrvtt, "MSRVTT_train.7k.csv"),
        expected={"train": Counts(7_010, 140_200), "test": _JSFUSION},
        protocol=f"1k-A test, {_ONE_TO_ONE}",
    ),
    "lsmdc": PublishedSet(
        read=_read_lsmdc,
        expected={"train": Counts(), "val": Counts(7_408, 7_408), "test": Counts(1_000, 1_000)},
        protocol=_ONE_TO_ONE,
    ),
    "activitynet": PublishedSet(
        read=_read_activitynet,
        expected={"train": Counts(10_009, 10_009, 15), "test": Counts(4_917, 4_917, 9)},
        protocol=f"val1 as test, {_PARAGRAPH}",
        stems=lambda video_id: (video_id.removeprefix("v_"), video_id),
    ),
    "didemo": PublishedSet(
        read=_read_didemo,
        expected={
            "train": Counts(),  # lists of 8,392 and of 8,395 videos are about
            "val": Counts(1_065, 1_065),
            "test": Counts(1_004, 1_004),
        },
        protocol=f"{_PARAGRAPH}; the first 30 s of a video",
        end_s=30.0,
        stems=_stems_with_extension,
    ),
    "msvd": PublishedSet(
        read=_read_msvd,
        expected={"train": Counts(1_200), "val": Counts(100), "test": Counts(670, 27_763)},
        protocol=_SEVERAL,
        several_captions=True,
    ),
    "vatex": PublishedSet(
        read=_read_vatex,
        expected={"train": Counts(), "test": Counts()},
        protocol=_SEVERAL,
        several_captions=True,
    ),
}
"""The public data sets by the name that --dataset takes."""
