"""Batches of made embeddings and galleries of them, for the tests of galleries."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

import dgl_runtime
from dgl_runtime.gallery.gallery import Clip, Gallery
from dgl_runtime.gallery.local_vector_store import LocalVectors
from tests import ROOT

E, F, BATCH = 8, 3, 4
VECTORS = ("embeddings.0.f32", "frame_weights.0.f32")
MADE = {"bundle_id": "bundle-a", "bundle_path": "/models/a", "embed_dim": E, "num_frames": F}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def batch(number, size=BATCH):
    """The same clips, embeddings and frame weights for the same number, in every process."""
    rng = np.random.default_rng(number)
    clips = [
        Clip(f"vidéo {number}.mp4", f"{number:064x}", 0.1 * i, 0.1 * i + 2.5, 60.0)
        for i in range(size)
    ]
    weights = rng.random((size, F), np.float32)
    return clips, unit(rng.standard_normal((size, E))), weights / weights.sum(1, keepdims=True)


def gallery_of(folder, num_batches):
    with Gallery.create(folder, **MADE) as gallery:
        for number in range(num_batches):
            gallery.ingest(*batch(number))
    return folder


def found_in(gallery):
    """What a gallery says of each row of a clip, in order of rows."""
    rows = np.flatnonzero(gallery.select("1")).tolist()
    return dict(sorted(gallery.look_up(rows).items()))


def clips_of(gallery):
    """Each clip with its row, in order of rows."""
    return [(row, found.clip) for row, found in found_in(gallery).items()]


def frame_weights_of(gallery):
    """Float32 [N, F] of all clips."""
    weights = [found.frame_weights for found in found_in(gallery).values()]
    return np.stack(weights) if weights else np.empty((0, gallery.facts.num_frames), np.float32)


def contents(folder):
    """Everything a reader can see, and the vectors' bytes."""
    with Gallery.open(folder) as gallery:
        clips = clips_of(gallery)
    return clips, [(folder / name).read_bytes() for name in VECTORS]


def assert_holds(folder, num_batches):
    """Readers and then a writer find exactly these batches, each row once and whole."""
    parts = [batch(number) for number in range(num_batches)]
    for writable in (False, True):
        with Gallery.open(folder, bundle_id="bundle-a", writable=writable) as gallery:
            assert len(gallery) == num_batches * BATCH
            clips = [clip for clips, _, _ in parts for clip in clips]
            assert clips_of(gallery) == list(enumerate(clips))
            for rows, part in ((gallery.embeddings(), 1), (frame_weights_of(gallery), 2)):
                expected = np.concatenate([p[part] for p in parts])
                np.testing.assert_array_equal(rows, expected)


def through_graph(rows=0, threads=1):
    """Makes a gallery's store that searches through its graph from so many rows on."""
    return partial(LocalVectors, approximate_from=rows, threads=threads)


class PowerCut(BaseException):
    pass


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.helpers.made_galleries import BATCH, Gallery, batch
with Gallery.open(sys.argv[1], writable=True) as gallery:
    for number in range(len(gallery) // BATCH, int(sys.argv[2])):
        gallery.ingest(*batch(number))
        print(number, flush=True)
"""


def start_writer(folder, num_batches):
    code = WRITER.format(root=str(ROOT))
    environment = {**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(num_batches)],
        stdout=subprocess.PIPE,
        env=environment,
    )
