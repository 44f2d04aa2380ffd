"""Retrieval metrics from a similarity matrix: ranks by counting, recall, median and mean rank.

A tie counts against the model, so one that finds every pair equally similar scores worst.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Similarity = NDArray[np.floating]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Recall at 1, 5 and 10 in percent of the queries; median and mean of the ranks, 1 = best."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    num_queries: int


def ranks(similarity: Similarity, is_relevant: NDArray[np.bool_]) -> Int64:
    """Rank, for each query, its best relevant candidate among the irrelevant ones.

    Args:
        similarity: Queries by candidates, [Q, N].
        is_relevant: Which candidates answer a query, bool [Q, N]; at least one in each row.

    Returns:
        1 + the number of irrelevant candidates at least as similar as the best relevant one,
        int64 [Q].

    Raises:
        ValueError: A shape or dtype does not fit, a similarity is not finite, or a query has no
            relevant candidate.
    """
    similarity = _checked(similarity)
    if is_relevant.dtype != np.bool_ or is_relevant.shape != similarity.shape:
        raise ValueError(
            f"is_relevant is {is_relevant.dtype} {list(is_relevant.shape)}, expected bool "
            f"{list(similarity.shape)}, the shape of the similarity."
        )
    without = np.flatnonzero(~is_relevant.any(axis=1))
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(similarity)} queries have no relevant candidate, first row "
            f"{without[0]}. Leave them out, or complete is_relevant."
        )
    best = np.where(is_relevant, similarity, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    is_ahead = ~is_relevant & (similarity >= best)
    found: Int64 = 1 + is_ahead.sum(axis=1, dtype=np.int64)
    assert found.shape == (len(similarity),), "each query has exactly one rank"
    return found


def text_to_video(similarity: Similarity, caption_clip: Int64) -> Int64:
    """Rank the clip of each caption among all clips.

    Args:
        similarity: Captions by clips, [Q, N].
        caption_clip: The column of each caption's clip, int64 [Q].

    Returns:
        One rank per caption, int64 [Q].

    Raises:
        ValueError: As for :func:`ranks`, or a clip number does not fit.
    """
    return ranks(similarity, _pairs(similarity, caption_clip))


def video_to_text(
    similarity: Similarity, caption_clip: Int64, *, group_captions: bool = False
) -> Int64:
    """Rank the best of each clip's captions.

    Args:
        similarity: Captions by clips, [Q, N].
        caption_clip: The column of each caption's clip, int64 [Q]; each clip has a caption.
        group_captions: False ranks among the single captions of other clips. True lets every clip
            stand for its captions with the best of them, so that N candidates compete: the protocol
            of CLIP4Clip and DGL where clips have several captions (MSVD, VATEX). With one caption
            per clip both are the same.

    Returns:
        One rank per clip, int64 [N].

    Raises:
        ValueError: As for :func:`ranks`, a clip number does not fit, or a clip has no caption.
    """
    pairs = _pairs(similarity, caption_clip)
    if not group_captions:
        return ranks(similarity.T, pairs.T)
    grouped = np.full((similarity.shape[1], similarity.shape[1]), -np.inf)
    np.maximum.at(grouped, caption_clip, _checked(similarity))
    without = np.flatnonzero(~pairs.any(axis=0))
    if len(without):
        raise ValueError(f"clip {without[0]} has no caption; leave its column out.")
    return ranks(grouped.T, np.eye(len(grouped), dtype=np.bool_))


def summarize(found: Int64) -> RetrievalMetrics:
    """Summarize ranks, int64 [Q], 1 = best.

    Raises:
        ValueError: There are no ranks, or one is below 1.
    """
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu" or found.min() < 1:
        raise ValueError(
            f"got ranks {found.dtype} {list(found.shape)}, expected integers [Q] from 1, Q above 0."
        )
    r1, r5, r10 = (100 * float(np.mean(found <= limit)) for limit in (1, 5, 10))
    return RetrievalMetrics(
        r1=r1,
        r5=r5,
        r10=r10,
        median_rank=float(np.median(found)),
        mean_rank=float(np.mean(found)),
        num_queries=len(found),
    )


def direction_score(own: Similarity, reversed_event: Similarity) -> float:
    """Measure whether a model tells an event from the same event run backwards.

    A model blind to order scores about 50, one that cannot tell the two captions apart scores 0.

    Args:
        own: Similarity of each clip to its own caption, [N].
        reversed_event: Similarity of each clip to the caption of the time-reversed event, [N].

    Returns:
        Percentage of clips whose own caption is strictly more similar.

    Raises:
        ValueError: The shapes differ, there are no clips, or a similarity is not finite.
    """
    if own.shape != reversed_event.shape or own.ndim != 1 or own.size == 0:
        raise ValueError(
            f"got similarities {list(own.shape)} and {list(reversed_event.shape)}, expected "
            "the same [N] with N above 0."
        )
    return 100 * float(np.mean(_finite(own) > _finite(reversed_event)))


def _pairs(similarity: Similarity, caption_clip: Int64) -> NDArray[np.bool_]:
    num_captions, num_clips = _checked(similarity).shape
    if caption_clip.shape != (num_captions,) or caption_clip.dtype.kind not in "iu":
        raise ValueError(
            f"caption_clip is {caption_clip.dtype} {list(caption_clip.shape)}, expected integers "
            f"[{num_captions}], one clip per row of the similarity."
        )
    wrong = caption_clip[(caption_clip < 0) | (caption_clip >= num_clips)]
    if len(wrong):
        raise ValueError(f"caption_clip holds {wrong[0]}, expected 0 to {num_clips - 1}.")
    pairs: NDArray[np.bool_] = caption_clip[:, None] == np.arange(num_clips)
    return pairs


def _checked(similarity: Similarity) -> Similarity:
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {list(similarity.shape)}, expected [Q, N].")
    return _finite(similarity)


def _finite(similarity: Similarity) -> Similarity:
    if similarity.dtype.kind != "f" or not np.isfinite(similarity).all():
        raise ValueError(
            f"similarities ({similarity.dtype}) must be finite floats: a NaN has no rank. "
            "Check the embeddings they come from."
        )
    return similarity
