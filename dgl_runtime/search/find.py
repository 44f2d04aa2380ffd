"""Search of a gallery by embeddings: filter, rank, correct for hubs, group into moments."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.search.moments import GROUPINGS, Hit, group
from dgl_runtime.search.querybank import hubness, inverted_softmax

Float32 = NDArray[np.float32]

HUB_BETA = 20.0  # inverse temperature of the correction for hubs
_HUB_CANDIDATES = 1000  # clips that are ranked anew by it
_CLIPS_A_MOMENT = 4  # looked at first, for each moment asked for
_ROWS_AT_ONCE = 16_384
_LOOKED_UP_AT_ONCE = 16  # hits; the first are often all that is needed


@dataclass(frozen=True)
class Bank:
    """A querybank for a gallery whose embeddings are elsewhere: compared with what each search finds.

    Attributes:
        embeddings: Of its texts, unit-norm float32 [Q, E], Q above 0.
    """

    embeddings: Float32

    def of(self, gallery: AnyGallery, rows: NDArray[np.int64]) -> Float32:
        """How near rows of the gallery are to the bank, float32 [rows]."""
        return hubness(self.embeddings @ gallery.embeddings(rows).T, HUB_BETA)


Hubness = Float32 | Bank
"""How near clips are to a querybank: of all rows, float32 [rows], or to be found for those of a search."""


@dataclass(frozen=True)
class Refinement:
    """What is searched among, and how hits are shown.

    Attributes:
        where: A condition in SQL that clips must fulfil; see ``gallery/filters.py``.
        grouping: One of ``dgl_runtime.search.moments.GROUPINGS``.
        bank_hubness: What :func:`bank_hubness` gave, to rank down clips that are near to every text.
    """

    where: str | None = None
    grouping: str = "apart"
    bank_hubness: Hubness | None = None

    def __post_init__(self) -> None:
        if self.grouping not in GROUPINGS:
            raise ValueError(
                f"grouping is {self.grouping!r}, expected one of {', '.join(GROUPINGS)}."
            )


def find_moments(
    gallery: AnyGallery, queries: Float32, top_k: int, refinement: Refinement
) -> list[list[Hit]]:
    """The best moments of each query, best first.

    Args:
        gallery: Where to search.
        queries: Unit-norm float32 [Q, E], of texts or of clips.
        top_k: Moments a query at the most.
        refinement: What among, and how they are shown.

    Raises:
        GalleryError: The condition does not work, or what searches go through is damaged.
    """
    where = None if refinement.where is None else gallery.select(refinement.where)
    wanted = top_k if refinement.grouping == "none" else _CLIPS_A_MOMENT * top_k
    if refinement.bank_hubness is not None:
        wanted = max(wanted, _HUB_CANDIDATES)
    most = top_k
    if refinement.grouping == "video":
        most = min(top_k, gallery.facts.num_videos)
    waiting = list(range(len(queries)))
    found: list[list[Hit]] = [[]] * len(queries)
    while waiting:
        ranked = zip(*gallery.search(queries[waiting], wanted, where), strict=True)
        for number, hits in zip(list(waiting), ranked, strict=True):
            ranked_hits = _corrected(gallery, *hits, refinement)
            if (
                is_merged := refinement.grouping == "merge"
            ):  # of more clips there would be fewer moments
                ranked_hits = islice(ranked_hits, top_k)
            moments = group(ranked_hits, refinement.grouping, top_k)
            is_all = len(hits[0]) < wanted  # there is no more to look at
            if len(moments) >= most or is_all or is_merged:
                found[number] = moments
                waiting.remove(number)
        wanted *= _CLIPS_A_MOMENT
    return found


def _corrected(
    gallery: AnyGallery, rows: NDArray[np.int64], similarity: Float32, refinement: Refinement
) -> Iterator[Hit]:
    order = np.arange(len(rows))
    if (bank := refinement.bank_hubness) is not None:
        near = bank.of(gallery, rows) if isinstance(bank, Bank) else bank[rows]
        order = np.argsort(-inverted_softmax(similarity, near), kind="stable")
    rows, similarity = rows[order], similarity[order]
    for first in range(0, len(rows), _LOOKED_UP_AT_ONCE):
        part = slice(first, first + _LOOKED_UP_AT_ONCE)
        found = gallery.look_up(rows[part])
        for row, value in zip(rows[part].tolist(), similarity[part].tolist(), strict=True):
            if row not in found:  # dropped since the search, by another writer
                continue
            clip, weights = found[row].clip, tuple(found[row].frame_weights.tolist())
            yield Hit(clip.video, clip.start_s, clip.end_s, value, weights, row)


def bank_hubness(gallery: AnyGallery, bank: Float32) -> Hubness:
    """How near each row of a gallery is to a bank of texts.

    Args:
        gallery: What is searched.
        bank: Unit-norm float32 [Q, E] of texts of the kind that is searched, a hundred or more.

    Returns:
        Float32 [rows]; of a gallery whose embeddings are elsewhere the bank, to be asked at each search.

    Raises:
        ValueError: The bank is empty.
    """
    if not gallery.is_local:
        return Bank(bank)
    parts = [
        hubness(bank @ gallery.embeddings(slice(first, first + _ROWS_AT_ONCE)).T, HUB_BETA)
        for first in range(0, gallery.facts.num_rows, _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
