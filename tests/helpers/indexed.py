"""Index videos in tests, and compare galleries whatever the order of their rows."""

import numpy as np

from dgl_runtime import Retriever
from dgl_runtime.gallery.address import open_gallery, read_place
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.made_galleries import clips_of


def add(bundle, gallery, *paths, **options):
    with Retriever(bundle, gallery, threads=1) as retriever:
        return retriever.add_videos(paths, **options)


def contents(gallery):
    """Each clip, with its embedding and frame weights; each must be there once."""
    with open_gallery(read_place(gallery)) as opened:
        query = np.eye(1, opened.facts.embed_dim, dtype=np.float32)
        rows = opened.look_up(sorted(opened.search(query, len(opened) + 1)[0].ravel().tolist()))
        assert len({found.clip.key for found in rows.values()}) == len(rows) == len(opened)
        embeddings = opened.embeddings(np.fromiter(rows, np.int64))
        return {
            found.clip: (embedding, found.frame_weights)
            for embedding, found in zip(embeddings, rows.values(), strict=True)
        }


def names(gallery):
    """The file name of each clip's video, sorted."""
    with Gallery.open(gallery) as opened:
        return sorted(clip.video.rpartition("/")[2] for _, clip in clips_of(opened))


def assert_same(found, expected):
    """Two ``contents``; embeddings depend in the last digits on what was encoded beside them."""
    assert found.keys() == expected.keys()
    for clip, rows in found.items():
        for one, other in zip(rows, expected[clip], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)
