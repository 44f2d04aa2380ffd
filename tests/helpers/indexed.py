"""Index videos in tests, and compare galleries whatever the order of their rows."""

import numpy as np

from dgl_runtime import Retriever
from dgl_runtime.gallery.gallery import Gallery


def add(bundle, gallery, *paths, **options):
    with Retriever(bundle, gallery, threads=1) as retriever:
        return retriever.add_videos(paths, **options)


def contents(gallery):
    """Each clip, with its embedding and frame weights; each must be there once."""
    with Gallery.open(gallery) as opened:
        rows = list(opened.records.clips())
        found = {clip: (opened.embeddings[row], opened.frame_weights[row]) for row, clip in rows}
        assert len({clip.key for _, clip in rows}) == len(rows) == len(opened)
        return {clip: (one.copy(), other.copy()) for clip, (one, other) in found.items()}


def names(gallery):
    """The file name of each clip's video, sorted."""
    with Gallery.open(gallery) as opened:
        return sorted(clip.video.rpartition("/")[2] for _, clip in opened.records.clips())


def assert_same(found, expected):
    """Two ``contents``; embeddings depend in the last digits on what was encoded beside them."""
    assert found.keys() == expected.keys()
    for clip, rows in found.items():
        for one, other in zip(rows, expected[clip], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)
