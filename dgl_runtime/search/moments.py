"""From ranked clips to the moments a person wants to see: apart from each other, merged, or one a video."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

GROUPINGS = ("apart", "merge", "video", "none")
"""What is done with clips of one video: ``apart`` leaves out a clip that overlaps a better one, ``merge``
joins neighbours among the best ``top_k`` clips into one moment, ``video`` keeps the best of each video,
``none`` keeps all."""


@dataclass(frozen=True)
class Hit:
    """A moment that was found."""

    video: str
    start_s: float
    end_s: float
    similarity: float  # cosine, -1 to 1; of merged clips the best one's
    frame_weights: tuple[float, ...]  # of the best clip's frames
    row: int  # of that clip in the gallery


def group(ranked: Iterable[Hit], grouping: str, top_k: int) -> list[Hit]:
    """Moments, best first, ``top_k`` at the most.

    Args:
        ranked: Clips, best first; no more are taken than are needed, but ``merge`` needs all.
        grouping: One of ``GROUPINGS``.
        top_k: 1 or more.
    """
    kept: list[Hit] = []
    by_video: dict[str, list[int]] = {}  # video -> places in ``kept``
    for hit in ranked:
        places = by_video.setdefault(hit.video, [])
        if grouping == "video" and places:
            continue
        if grouping == "apart" and any(_overlap(kept[place], hit) for place in places):
            continue
        if grouping == "merge" and (near := [p for p in places if _touch(kept[p], hit)]):
            _join(kept, places, near, hit)
            continue
        places.append(len(kept))
        kept.append(hit)
        if len(kept) == top_k and grouping != "merge":
            break
    return [hit for hit in kept if hit.row >= 0][:top_k]


def _overlap(one: Hit, other: Hit) -> bool:
    return one.start_s < other.end_s and other.start_s < one.end_s


def _touch(one: Hit, other: Hit) -> bool:
    return one.start_s <= other.end_s and other.start_s <= one.end_s


def _join(kept: list[Hit], places: list[int], near: Sequence[int], hit: Hit) -> None:
    """Widen the best of the moments that a clip touches; the others become part of it."""
    best = near[0]
    parts = [kept[place] for place in near] + [hit]
    start_s, end_s = min(p.start_s for p in parts), max(p.end_s for p in parts)
    kept[best] = replace(kept[best], start_s=start_s, end_s=end_s)
    for place in near[1:]:
        kept[place] = replace(kept[place], row=-1)
        places.remove(place)
