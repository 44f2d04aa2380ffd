"""dgl-bench moments: is a planted moment found, with videos taken whole, in windows, and at their shots?

Each long video is made of moving shapes: one clip of the test split, whose caption is the query, among
fillers of the train split; no filler has that caption.
"""

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.report import Report, Table
from dgl_runtime import Retriever
from dgl_runtime.media.windows import Span
from dgl_runtime.search.moments import Hit
from dgl_train.shapes.clips import (
    FPS,
    NUM_FRAMES,
    PlannedClip,
    looks,
    plan_clips,
    render_clip,
    write_mp4,
)

CLIP_S = NUM_FRAMES / FPS
FOUND_FROM = 0.5  # temporal intersection over union with the planted moment
CUTTINGS: dict[str, dict[str, float | bool]] = {
    "whole": {},
    "windows of 2 s": {"window_s": CLIP_S},
    "windows of 2 s, every 1 s": {"window_s": CLIP_S, "stride_s": CLIP_S / 2},
    "windows of 3 s, every 1.5 s": {"window_s": 1.5 * CLIP_S, "stride_s": 0.75 * CLIP_S},
    "shots": {"at_shots": True},
}
_FILLERS = 512


@dataclass(frozen=True)
class MomentsSettings:
    """What to measure."""

    bundle: Path
    videos: int
    clips_a_video: int
    seed: int


@dataclass(frozen=True)
class Planted:
    """A long video, and the sentence for one moment of it."""

    video: Path
    sentence: str
    span: Span


@dataclass(frozen=True)
class Found:
    """What one cutting found.

    Attributes:
        cutting: Its name.
        clips: In the gallery.
        index_s: Seconds that indexing took.
        video_recall: Percent of sentences with the right video among the best 1 and 5 hits.
        moment_recall: The same, with the right moment of it.
        mean_iou: Temporal intersection over union of the first hit, 0 in another video.
    """

    cutting: str
    clips: int
    index_s: float
    video_recall: tuple[float, float]
    moment_recall: tuple[float, float]
    mean_iou: float


def bench_moments(settings: MomentsSettings) -> list[Found]:
    """Make the videos, index them with every cutting, and ask for every planted moment."""
    with TemporaryDirectory() as folder:
        planted = plant(Path(folder), settings)
        return [_search(Path(folder), planted, settings.bundle, name) for name in CUTTINGS]


def plant(folder: Path, settings: MomentsSettings) -> list[Planted]:
    """Write the long videos."""
    rng = np.random.default_rng(settings.seed)
    most = 8 * len(looks("test")) // 16 * 16
    asked = plan_clips("test", min(most, -(-settings.videos // 16) * 16), settings.seed)
    fillers = plan_clips("train", _FILLERS, settings.seed)
    (folder / "videos").mkdir()
    planted = []
    for number in tqdm(range(settings.videos), desc="videos", disable=None, leave=False):
        place = int(rng.integers(settings.clips_a_video))
        clips: list[PlannedClip] = [
            fillers[i] for i in rng.choice(_FILLERS, settings.clips_a_video - 1, False)
        ]
        clips.insert(place, asked[number])
        video = folder / "videos" / f"{number:04d}.mp4"
        write_mp4(video, np.concatenate([render_clip(clip) for clip in clips]))
        span = Span(place * CLIP_S, (place + 1) * CLIP_S)
        planted.append(Planted(video.resolve(), asked[number].caption, span))
    return planted


def _search(folder: Path, planted: Sequence[Planted], bundle: Path, name: str) -> Found:
    gallery = folder / name.replace(" ", "-")
    started = time.perf_counter()
    with Retriever(bundle, gallery) as retriever:
        retriever.add_videos([folder / "videos"], show_progress=True, **CUTTINGS[name])  # type: ignore[arg-type]
        index_s = time.perf_counter() - started
        hits = [retriever.search(one.sentence, 5) for one in planted]
        clips = len(retriever.gallery)
    in_video = [
        [hit.video == str(one.video) for hit in best]
        for one, best in zip(planted, hits, strict=True)
    ]
    overlaps = [[iou(one, hit) for hit in best] for one, best in zip(planted, hits, strict=True)]
    right = [[value >= FOUND_FROM for value in row] for row in overlaps]
    return Found(
        name,
        clips,
        index_s,
        (_recall(in_video, 1), _recall(in_video, 5)),
        (_recall(right, 1), _recall(right, 5)),
        float(np.mean([row[0] for row in overlaps])),
    )


def iou(planted: Planted, hit: Hit) -> float:
    """Temporal intersection over union of a hit with the planted moment; 0 in another video."""
    if hit.video != str(planted.video):
        return 0.0
    both = min(hit.end_s, planted.span.end_s) - max(hit.start_s, planted.span.start_s)
    either = max(hit.end_s, planted.span.end_s) - min(hit.start_s, planted.span.start_s)
    return max(both, 0.0) / either


def _recall(right: Sequence[Sequence[bool]], top: int) -> float:
    return 100 * float(np.mean([any(row[:top]) for row in right]))


def make_report(settings: MomentsSettings, found: Sequence[Found]) -> Report:
    """A table for people, every number for programs."""
    columns = [
        "cutting",
        "clips",
        "video R@1",
        "video R@5",
        "moment R@1",
        "moment R@5",
        "mean IoU",
        "indexed in",
    ]
    rows = [
        [
            one.cutting,
            f"{one.clips:,}",
            *(f"{value:.1f}" for value in (*one.video_recall, *one.moment_recall)),
            f"{one.mean_iou:.3f}",
            f"{one.index_s:.0f} s",
        ]
        for one in found
    ]
    length_s = settings.clips_a_video * CLIP_S
    return Report(
        name="moments",
        title="Planted moments",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={
            "bundle": settings.bundle.name,
            "videos": settings.videos,
            "seconds each": length_s,
            "seed": settings.seed,
        },
        tables=[
            Table(f"{settings.videos} videos of {length_s:g} s, a sentence for each", columns, rows)
        ],
        notes=[
            f"Moment: in the right video, with temporal intersection over union of {FOUND_FROM} or more. Mean "
            "IoU: of the first hit.",
            "Hits overlap no better hit of their video (grouping apart, as dgl-search does).",
        ],
        data={"found": [asdict(one) for one in found]},
    )
