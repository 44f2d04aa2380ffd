"""Copies a gallery into another, of any kind; what is there is left, so a copy that was stopped goes on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import FileState, Value, Video
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.gallery.vector_store import Float32, Int64

_VIDEOS = 64  # that are read at once
_CLIPS = 1_024  # that are written at once
_SAMPLE, _TOP_K = 32, 10  # searches with which both are compared
_TIE = 1e-6
_ALIKE = 0.95  # of the hits; an engine's own index may miss some


@dataclass(frozen=True)
class Copied:
    """What one run of copying did."""

    num_videos: int
    num_clips: int
    clips_added: int
    agreement: float  # share of the hits of sample searches that both give


def copy_gallery(source: AnyGallery, target: AnyGallery, *, show_progress: bool = False) -> Copied:
    """Copy all videos: their files, clips, embeddings, frame weights, metadata and what is complete.

    Args:
        source: Open for reading; nobody should write it meanwhile.
        target: Open for writing; of the same bundle.
        show_progress: Draw a progress bar on stderr.

    Raises:
        GalleryError: In the end the target does not hold the same, or one of them refused.
    """
    from tqdm import tqdm

    added, firsts = 0, list[int]()
    total = source.facts.num_videos
    held = {file.path: file for file in target.files()}
    with tqdm(total=total, unit="video", disable=None if show_progress else True) as bar:
        for videos in _pages(source):
            added += _copy_videos(source, target, videos, held)
            firsts += [video.rows[0] for video in videos if video.rows]
            bar.update(len(videos))
            bar.set_postfix({"clips": added})
    target.compact()
    _compare_counts(source, target)
    sample = np.array(firsts[:: -(-len(firsts) // _SAMPLE) or 1], np.int64)
    agreement = _compare_searches(source, target, sample)
    facts = target.facts
    return Copied(facts.num_videos, facts.num_clips, added, agreement)


def _pages(source: AnyGallery) -> Iterator[list[Video]]:
    after = -1
    while videos := source.videos(after, _VIDEOS):
        yield videos
        after = videos[-1].number


def _copy_videos(
    source: AnyGallery, target: AnyGallery, videos: Sequence[Video], held: Mapping[str, FileState]
) -> int:
    """Copy some videos; how many clips were not there.

    Files that the target holds in another state are left: it may have seen them later.
    """
    placed = [
        (file, video)
        for video in videos
        for file in video.files
        if held.get(file.path, file) == file
    ]
    known = target.plan([file for file, _ in placed], "")
    in_files = set[str]()
    for (file, video), there in zip(placed, known, strict=True):
        if there.content_sha256 is None:
            target.upsert(file, video.content_sha256, video.duration_s)
        if there.content_sha256 in (None, video.content_sha256):
            in_files.add(video.content_sha256)
    videos = [video for video in videos if video.content_sha256 in in_files]
    added = _copy_clips(source, target, [row for video in videos for row in video.rows])
    for video in videos:
        for segmentation in video.segmentations:
            target.finish(video.content_sha256, segmentation)
    columns = list(next((video.metadata for video in videos if video.metadata), ()))
    told = {
        video.content_sha256: [_kept(value) for value in video.metadata.values()]
        for video in videos
        if video.metadata
    }
    if columns:
        target.write_metadata(columns, told)
    return added


def _kept(value: Value) -> Value:
    """A number beyond those that SQLite has whole, as the nearest that it has."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def _copy_clips(source: AnyGallery, target: AnyGallery, rows: Sequence[int]) -> int:
    added = 0
    for first in range(0, len(rows), _CLIPS):
        found = source.look_up(rows[first : first + _CLIPS])
        clips = [one.clip for one in found.values()]
        numbers = target.missing(clips)
        if not numbers:
            continue
        there = [list(found)[number] for number in numbers]
        target.ingest(
            [clips[number] for number in numbers],
            source.embeddings(np.array(there, np.int64)),
            np.stack([found[row].frame_weights for row in there]),
        )
        added += len(numbers)
    return added


# ---- whether both are the same ----------------------------------------------------------------------


def _compare_counts(source: AnyGallery, target: AnyGallery) -> None:
    for what in ("videos", "clips"):
        ours, theirs = (getattr(one.facts, f"num_{what}") for one in (source, target))
        if ours != theirs:
            raise GalleryError(
                f"gallery {target.address} holds {theirs} {what}, expected the {ours} of {source.address}. "
                "It held others before, or one of them was written meanwhile: copy into a new one."
            )


def _compare_searches(source: AnyGallery, target: AnyGallery, sample: Int64) -> float:
    """Search for some clips of the source in both; the share of its hits that the target gives too."""
    if not len(sample):
        return 1.0
    queries = np.asarray(source.embeddings(sample))
    shares = [
        np.mean(
            [
                key in theirs or value <= min(theirs.values(), default=-1.0) + _TIE
                for key, value in ours.items()
            ]
        )
        for ours, theirs in zip(_hits(source, queries), _hits(target, queries), strict=True)
    ]
    if (agreement := float(np.mean(shares))) < _ALIKE:
        raise GalleryError(
            f"gallery {target.address} finds {agreement:.0%} of what {source.address} finds, expected "
            f"{_ALIKE:.0%} or more. Copy into a new one; if that ends alike, report it."
        )
    return agreement


def _hits(gallery: AnyGallery, queries: Float32) -> list[dict[tuple[str, float, float], float]]:
    """Of each query the clips that are found, and their similarities."""
    rows, similarities = gallery.search(queries, _TOP_K)
    found = gallery.look_up(rows.ravel().tolist())
    return [
        {found[row].clip.key: value for row, value in zip(own, values, strict=True) if row in found}
        for own, values in zip(rows.tolist(), similarities.tolist(), strict=True)
    ]
