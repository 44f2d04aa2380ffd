"""dgl-data: what of a data set is there, and what of it can be used."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.command import Command, report_note
from dgl_runtime.errors import ConfigError
from dgl_runtime.names import Files, Named, form_hint
from dgl_train.commands.options import data_root_option

if TYPE_CHECKING:
    from dgl_train.data.captioned_clip import CaptionedClip
    from dgl_train.data.published import Captions, Counts
    from dgl_train.data.verify import Verified

_LINES_NAMED = 10


@dataclass(frozen=True)
class SplitFound:
    """What of one split is there; ``published_*`` is None where nothing is published."""

    videos: int
    published_videos: int | None
    usable_videos: int
    captions: int
    published_captions: int | None
    captions_without_video: int
    ids_without_captions: list[str]
    published_ids_without_captions: int


@dataclass(frozen=True)
class Found:
    """What of a data set is there.

    Attributes:
        protocol: How it is evaluated; empty for a file of one's own.
        splits: Split -> what of it is there.
        missing: Videos that are not there.
        similar: Missing video -> one that is there, whose name differs in case or form only.
        broken: Video -> why it cannot be used.
        odd: Video -> what is odd about it, although it is used.
        differences: What is not as published, in words.
        shared: Videos in more than one split; figures on those are too good.
        notes: What of its file is not read, or perhaps not as it was meant.
        all_usable: Nothing is missing, broken or different.
    """

    dataset: str
    data_root: str
    protocol: str
    splits: dict[str, SplitFound]
    missing: list[str]
    similar: dict[str, str]
    broken: dict[str, str]
    odd: dict[str, str]
    differences: list[str]
    shared: list[str]
    notes: list[str]
    all_usable: bool


@click.group()
def data() -> None:
    """Look at data sets."""


@data.command(cls=Command)
@click.argument("name")
@data_root_option
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that decode  [one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every name.")
def check(name: str, data_root: Path | None, jobs: int | None, as_json: bool) -> None:
    """Count the files of the data set NAME, and decode every video that was not verified before.

    NAME is what --dataset of dgl-train takes. Nothing is changed in the data root. Exits with 1 if
    something is missing, broken or not as published.

    \b
    Example:
      dgl-data check msrvtt --data-root data/msrvtt
      dgl-data check clips.csv --json
    """  # noqa: D301 - click's own marker
    found = find(name, data_root, jobs=jobs)
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else format_found(found))
    sys.exit(0 if found.all_usable else 1)


def find(name: str, data_root: Path | None, *, jobs: int | None = None) -> Found:
    """Read a data set and verify its videos; see ``find_faults`` for ``jobs``.

    Raises:
        ConfigError: It cannot be read.
    """
    from dgl_train.data.datasets import read_dataset, shared_videos
    from dgl_train.data.published import PUBLISHED, Counts, read_captions
    from dgl_train.data.verify import find_faults

    if name == "shapes":
        raise ConfigError(
            "data set 'shapes' is generated, so there is nothing to check. "
            "Check generated shapes by their file: dgl-data check shapes/captions.csv."
        )
    notes: list[str] = []
    clips = read_dataset(name, data_root, tell=notes.append)
    for note in notes:
        report_note(note)
    verified = find_faults(clips, jobs=jobs)
    published = PUBLISHED.get(name)
    expected = published.expected if published else {}
    captions = read_captions(name, data_root) if published else {}
    splits = {
        split: _find_split(
            [clip for clip in clips if clip.split == split],
            verified,
            captions.get(split, {}),
            expected.get(split, Counts()),
        )
        for split in dict.fromkeys([*captions, *(clip.split for clip in clips)])
    }
    differences = [text for split, part in splits.items() for text in _differences(split, part)]
    shared = [video for split in splits for video in shared_videos(clips, split)]
    missing = [video for video in verified.faults if not video.exists()]
    return Found(
        dataset=name,
        data_root=str(data_root or Path(name).parent),
        protocol=published.protocol if published else "",
        splits=splits,
        missing=[str(video) for video in missing],
        similar=_similar(missing, data_root if published else None),
        broken={str(video): why for video, why in verified.faults.items() if video.exists()},
        odd={str(video): said for video, said in verified.remarks.items()},
        differences=differences,
        shared=[str(video) for video in dict.fromkeys(shared)],
        notes=notes,
        all_usable=not verified.faults and not differences,
    )


def _similar(missing: Sequence[Path], data_root: Path | None) -> dict[str, str]:
    """Videos that are there under nearly the name of a missing one: below a data root by their stem."""
    from dgl_train.data.annotation_files import index_videos

    files, videos = Files(), Named(index_videos(data_root) if data_root and missing else {})
    found: dict[str, str] = {}
    for video in missing:
        stem = videos.similar(video.stem)
        similar = files.similar(video) if stem is None else videos.find(stem)
        if similar is not None:
            found[str(video)] = str(similar)
    return found


def _find_split(
    clips: Sequence["CaptionedClip"], verified: "Verified", captions: "Captions", counts: "Counts"
) -> SplitFound:
    usable = set(verified.clips)
    return SplitFound(
        videos=len({clip.video for clip in clips}),
        published_videos=counts.videos,
        usable_videos=len({clip.video for clip in clips if clip in usable}),
        captions=len(clips),
        published_captions=counts.captions,
        captions_without_video=sum(clip not in usable for clip in clips),
        ids_without_captions=[video_id for video_id, texts in captions.items() if not texts],
        published_ids_without_captions=counts.ids_without_captions,
    )


def _differences(split: str, found: SplitFound) -> list[str]:
    pairs = {
        "videos": (found.videos, found.published_videos),
        "captions": (found.captions, found.published_captions),
        "ids without captions": (
            len(found.ids_without_captions),
            found.published_ids_without_captions,
        ),
    }
    return [
        f"{split} has {here:,} {what}, published are {published:,}"
        for what, (here, published) in pairs.items()
        if published is not None and here != published
    ]


def format_found(found: Found) -> str:
    """What is there as a table, then what is not, each with its first names."""
    title = f"{found.dataset} in {found.data_root}"
    without_captions = [i for part in found.splits.values() for i in part.ids_without_captions]
    lines = [
        f"{title}: {found.protocol}" if found.protocol else title,
        *_table(found.splits),
        *_named("missing videos", [_with_similar(name, found.similar) for name in found.missing]),
        *_named("broken videos", [f"{video}: {why}" for video, why in found.broken.items()]),
        *_named(
            "odd videos, used as they are", [f"{one}: {odd}" for one, odd in found.odd.items()]
        ),
        *_named("ids without captions", without_captions),
        *_named("not as published", found.differences),
        *_named("videos in more than one split", found.shared),
        _verdict(found),
    ]
    return "\n".join(lines)


def _verdict(found: Found) -> str:
    if unusable := len(found.missing) + len(found.broken):
        return f"{unusable:,} videos cannot be used; training and evaluation leave them out."
    is_all = not (found.differences or found.notes)
    return "Everything is there." if is_all else "Every video can be used."


def _with_similar(name: str, similar: Mapping[str, str]) -> str:
    return f"{name}{form_hint(similar.get(name))}"


def _table(splits: Mapping[str, SplitFound]) -> list[str]:
    head = ("split", "videos", "published", "usable", "captions", "published", "without video")
    rows: list[tuple[str, ...]] = [head]
    for split, part in splits.items():
        numbers = (
            part.videos,
            part.published_videos,
            part.usable_videos,
            part.captions,
            part.published_captions,
            part.captions_without_video,
        )
        rows.append((split, *("-" if number is None else f"{number:,}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = len(names) - _LINES_NAMED
    return [
        f"{what}: {len(names):,}",
        *(f"  {name}" for name in names[:_LINES_NAMED]),
        *([f"  and {more:,} more; --json names all"] if more > 0 else []),
    ]
