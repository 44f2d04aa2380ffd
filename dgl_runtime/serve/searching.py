"""Searches over HTTP, encoded and ranked as one batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import DglError
from dgl_runtime.search.find import Refinement, find_moments
from dgl_runtime.search.moments import Hit
from dgl_runtime.serve.answers import Filters, Moment
from dgl_runtime.serve.galleries import ServedGallery, Snapshot


@dataclass(frozen=True)
class Wanted:
    """A search in the queue: a text, or an example that was embedded."""

    gallery: ServedGallery
    query: str | NDArray[np.float32]
    filters: Filters


def answer_all(wanted: Sequence[Wanted]) -> list[list[Moment] | Exception]:
    """Answer searches: one run of the text encoder a bundle, one search for equal filters."""
    answers: list[list[Moment] | Exception] = [[] for _ in wanted]
    embeddings = _embed(wanted)
    for numbers in _alike(wanted):
        first = wanted[numbers[0]]
        try:
            with first.gallery.look() as snapshot:
                queries = np.stack([embeddings[number] for number in numbers])
                found = find_moments(
                    snapshot.gallery,
                    queries,
                    first.filters.top,
                    _refinement(first.filters, snapshot),
                )
                for number, hits in zip(numbers, found, strict=True):
                    answers[number] = _moments(snapshot, hits)
        except DglError as error:
            for number in numbers:
                answers[number] = error
    return answers


def _embed(wanted: Sequence[Wanted]) -> dict[int, NDArray[np.float32]]:
    embeddings: dict[int, NDArray[np.float32]] = {}
    texts: dict[int, list[int]] = {}  # encoder -> searches by text
    for number, one in enumerate(wanted):
        if isinstance(one.query, str):
            texts.setdefault(id(one.gallery.encoder), []).append(number)
        else:
            embeddings[number] = one.query
    for numbers in texts.values():
        encoder = wanted[numbers[0]].gallery.encoder
        rows = encoder.embed_texts([str(wanted[number].query) for number in numbers])
        embeddings.update(zip(numbers, rows, strict=True))
    return embeddings


def _alike(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Searches that can be answered together: of one gallery, with equal filters."""
    groups: dict[tuple[str, Filters], list[int]] = {}
    for number, one in enumerate(wanted):
        filters = Filters(**one.filters.model_dump(exclude={"query"}))
        groups.setdefault((one.gallery.name, filters), []).append(number)
    return list(groups.values())


def _refinement(filters: Filters, snapshot: Snapshot) -> Refinement:
    where = filters.where or None  # a form's empty field is no condition
    return Refinement(where, filters.group, snapshot.bank_hubness if filters.hubs else None)


def _moments(snapshot: Snapshot, hits: Sequence[Hit]) -> list[Moment]:
    found = snapshot.gallery.look_up(hit.row for hit in hits)
    moments = []
    for hit in hits:
        if hit.row not in found:  # dropped since the search, by another writer
            continue
        clip = found[hit.row].clip
        moments.append(
            Moment(
                clip=hit.row,
                video=found[hit.row].video_id,
                title=_name(hit.video),
                start_s=hit.start_s,
                end_s=hit.end_s,
                duration_s=clip.duration_s,
                similarity=hit.similarity,
                frame_weights=list(hit.frame_weights),
                clip_start_s=clip.start_s,
                clip_end_s=clip.end_s,
                metadata=dict(found[hit.row].metadata),
            )
        )
    return moments


def _name(video: str) -> str:
    """The name of a file; what JSON cannot hold is replaced. Not by Path, which takes a tenth of a search."""
    return os.path.basename(video).encode("utf-8", "replace").decode()  # noqa: PTH119
