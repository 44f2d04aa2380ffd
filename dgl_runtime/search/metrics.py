"""Retrieval metrics from a similarity matrix: ranks by counting, recall, median and mean rank.

A tie counts against the model, so one that finds every pair equally similar scores worst. The matrix
is read in parts: beside it, little memory is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Similarity = NDArray[np.floating]
Int64 = NDArray[np.int64]

_PART = 2**22  # similarities that are compared at a time: some MB of memory


@dataclass(frozen=True)
class RetrievalMetrics:
    """Recall at 1, 5 and 10 in percent of the queries; median and mean of the ranks, 1 = best."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    num_queries: int


def text_to_video(similarity: Similarity, caption_clip: Int64) -> Int64:
    """Rank the clip of each caption among all clips.

    Args:
        similarity: Captions by clips, float [Q, N].
        caption_clip: The column of each caption's clip, int64 [Q].

    Returns:
        The number of clips at least as similar as the caption's own, itself included, int64 [Q].

    Raises:
        ValueError: A shape or dtype does not fit, a similarity is not finite, or a clip number
            does not fit.
    """
    _check(similarity, caption_clip)
    found = np.zeros(len(similarity), np.int64)
    for rows in parts(*similarity.shape):
        part = _finite(similarity[rows])
        own = np.take_along_axis(part, caption_clip[rows, None], axis=1)
        found[rows] = np.count_nonzero(part >= own, axis=1)
    return _one_each(found, len(similarity))


def video_to_text(
    similarity: Similarity, caption_clip: Int64, *, group_captions: bool = False
) -> Int64:
    """Rank the best of each clip's captions.

    Args:
        similarity: Captions by clips, float [Q, N].
        caption_clip: The column of each caption's clip, int64 [Q]; each clip has a caption.
        group_captions: False ranks among the single captions of other clips. True lets every clip
            stand for its captions with the best of them, so that N candidates compete: the protocol
            of CLIP4Clip and DGL where clips have several captions (MSVD, VATEX). With one caption
            per clip both are the same.

    Returns:
        1 + the number of candidates that are not the clip's own and at least as similar as the
        best of its captions, int64 [N].

    Raises:
        ValueError: As for :func:`text_to_video`, or a clip has no caption.
    """
    _check(similarity, caption_clip)
    num_clips = similarity.shape[1]
    without = np.flatnonzero(np.bincount(caption_clip, minlength=num_clips) == 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {num_clips} clips have no caption, first clip {without[0]}. "
            "Leave their columns out."
        )
    rank = _rank_groups if group_captions else _rank_captions
    return _one_each(rank(similarity, caption_clip), num_clips)


def _rank_captions(similarity: Similarity, caption_clip: Int64) -> Int64:
    own = similarity[np.arange(len(similarity)), caption_clip]
    best = np.full(similarity.shape[1], -np.inf, similarity.dtype)
    np.maximum.at(best, caption_clip, own)
    ahead = np.zeros(similarity.shape[1], np.int64)
    for rows in parts(*similarity.shape):
        ahead += np.count_nonzero(_finite(similarity[rows]) >= best, axis=0)
    own_best = np.bincount(caption_clip[own >= best[caption_clip]])  # 1 or more of each clip
    return 1 + ahead - own_best


def _rank_groups(similarity: Similarity, caption_clip: Int64) -> Int64:
    by_clip = np.argsort(caption_clip)
    starts = np.searchsorted(caption_clip[by_clip], np.arange(similarity.shape[1]))
    found = np.zeros(similarity.shape[1], np.int64)
    for columns in parts(*similarity.shape[::-1]):
        part = _finite(similarity[:, columns][by_clip])
        best = np.maximum.reduceat(part, starts)  # clips as candidates by clips as queries
        own = best[columns].diagonal()
        found[columns] = np.count_nonzero(best >= own, axis=0)
    return found


def parts(length: int, width: int) -> Iterator[slice]:
    """Cut rows of a matrix [length, width] into parts that are compared at a time."""
    step = max(1, _PART // max(width, 1))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


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


def _check(similarity: Similarity, caption_clip: Int64) -> None:
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {list(similarity.shape)}, expected [Q, N].")
    _finite(similarity[:1])  # its dtype, before anything is made like it
    num_captions, num_clips = similarity.shape
    if caption_clip.shape != (num_captions,) or caption_clip.dtype.kind not in "iu":
        raise ValueError(
            f"caption_clip is {caption_clip.dtype} {list(caption_clip.shape)}, expected integers "
            f"[{num_captions}], one clip per row of the similarity."
        )
    wrong = caption_clip[(caption_clip < 0) | (caption_clip >= num_clips)]
    if len(wrong):
        raise ValueError(f"caption_clip holds {wrong[0]}, expected 0 to {num_clips - 1}.")


def _finite(similarity: Similarity) -> Similarity:
    if similarity.dtype.kind != "f" or not np.isfinite(similarity).all():
        raise ValueError(
            f"similarities ({similarity.dtype}) must be finite floats: a NaN has no rank. "
            "Check the embeddings they come from."
        )
    return similarity


def _one_each(found: Int64, num_queries: int) -> Int64:
    assert found.shape == (num_queries,), "each query has exactly one rank"
    assert num_queries == 0 or found.min() >= 1, "the best rank is 1"
    return found
