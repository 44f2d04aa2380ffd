"""dgl-bench moments: is a planted moment found, with videos taken whole, in windows, and at their shots?

Each long video is made of moving shapes: one clip of the test split, whose caption is the query, among
fillers of the train split; no filler has that caption.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from dgl_bench.command import benchmark
from dgl_bench.report import Report, Row, Table
from dgl_runtime import Retriever
from dgl_runtime.media.windows import Span
from dgl_runtime.search.moments import Hit
from dgl_train.shapes import clips as shapes

CLIP_S = shapes.NUM_FRAMES / shapes.FPS
FOUND_FROM = 0.5  # temporal intersection over union with the planted moment
SEGMENTATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "windows of 2 s": {"window_s": CLIP_S},
    "windows of 2 s, every 1 s": {"window_s": CLIP_S, "stride_s": CLIP_S / 2},
    "windows of 3 s, every 1.5 s": {"window_s": 1.5 * CLIP_S, "stride_s": 0.75 * CLIP_S},
    "shots": {"at_shots": True},
}
_FILLERS = 512


@dataclass(frozen=True)
class Planted:
    """A long video, and the sentence for one moment of it."""

    video: Path
    sentence: str
    span: Span


@benchmark
def moments(
    bundle: Path,
    videos: int = 200,
    clips: Annotated[int, "Joined in a video."] = 12,
    seed: int = 0,
) -> Report:
    """Find planted moments of moving shapes: videos whole, in windows, and at their shots.

    BUNDLE was tuned on shapes, as demo.sh does.

    Example: dgl-bench moments demo/bundle --videos 200
    """
    with TemporaryDirectory() as folder:
        planted = plant(Path(folder), videos, clips, seed)
        rows = [_search(Path(folder), planted, bundle, name) for name in SEGMENTATIONS]
    return Report(
        name="moments",
        title="Planted moments",
        tables=[Table(f"{videos} videos of {clips * CLIP_S:g} s, a sentence for each", rows)],
        notes=[
            f"Moment: in the right video, with temporal intersection over union of {FOUND_FROM} or more. "
            "Mean IoU: of the first hit. Hits overlap no better hit of their video, as in dgl-search.",
        ],
    )


def plant(folder: Path, videos: int, clips_a_video: int, seed: int) -> list[Planted]:
    """Write the long videos."""
    rng = np.random.default_rng(seed)
    most = 8 * len(shapes.looks("test")) // 16 * 16
    asked = shapes.plan_clips("test", min(most, -(-videos // 16) * 16), seed)
    fillers = shapes.plan_clips("train", _FILLERS, seed)
    (folder / "videos").mkdir()
    planted = []
    for number in tqdm(range(videos), desc="videos", disable=None, leave=False):
        place = int(rng.integers(clips_a_video))
        clips = [fillers[i] for i in rng.choice(_FILLERS, clips_a_video - 1, False)]
        clips.insert(place, asked[number])
        video = folder / "videos" / f"{number:04d}.mp4"
        shapes.write_mp4(video, np.concatenate([shapes.render_clip(clip) for clip in clips]))
        span = Span(place * CLIP_S, (place + 1) * CLIP_S)
        planted.append(Planted(video.resolve(), asked[number].caption, span))
    return planted


def _search(folder: Path, planted: Sequence[Planted], bundle: Path, name: str) -> Row:
    """What one segmentation finds, in percent of the sentences."""
    started = time.perf_counter()
    with Retriever(bundle, folder / name.replace(" ", "-")) as retriever:
        retriever.add_videos([folder / "videos"], show_progress=True, **SEGMENTATIONS[name])
        index_s = time.perf_counter() - started
        hits = [retriever.search(one.sentence, 5) for one in planted]
        clips = len(retriever.gallery)
    pairs = list(zip(planted, hits, strict=True))
    in_video = [[hit.video == str(one.video) for hit in best] for one, best in pairs]
    overlaps = [[iou(one, hit) for hit in best] for one, best in pairs]
    right = [[value >= FOUND_FROM for value in row] for row in overlaps]
    return {
        "segmentation": name,
        "clips": clips,
        "video R@1": _recall(in_video, 1),
        "video R@5": _recall(in_video, 5),
        "moment R@1": _recall(right, 1),
        "moment R@5": _recall(right, 5),
        "mean IoU": float(np.mean([row[0] for row in overlaps])),
        "indexed in, s": index_s,
    }


def iou(planted: Planted, hit: Hit) -> float:
    """Temporal intersection over union of a hit with the planted moment; 0 in another video."""
    if hit.video != str(planted.video):
        return 0.0
    both = min(hit.end_s, planted.span.end_s) - max(hit.start_s, planted.span.start_s)
    either = max(hit.end_s, planted.span.end_s) - min(hit.start_s, planted.span.start_s)
    return max(both, 0.0) / either


def _recall(found: Sequence[Sequence[bool]], among: int) -> float:
    return 100 * float(np.mean([any(row[:among]) for row in found]))
