"""Batches of made embeddings and galleries of them, for the tests of galleries."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import dgl_runtime
from dgl_runtime.gallery.gallery import Clip, Gallery
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
            gallery.append(*batch(number))
    return folder


def contents(folder):
    """Everything a reader can see, and the vectors' bytes."""
    with Gallery.open(folder) as gallery:
        clips = list(gallery.records.clips())
    return clips, [(folder / name).read_bytes() for name in VECTORS]


def assert_holds(folder, num_batches):
    """Readers and then a writer find exactly these batches, each row once and whole."""
    parts = [batch(number) for number in range(num_batches)]
    for writable in (False, True):
        with Gallery.open(folder, bundle_id="bundle-a", writable=writable) as gallery:
            assert len(gallery) == num_batches * BATCH
            clips = [clip for clips, _, _ in parts for clip in clips]
            assert list(gallery.records.clips()) == list(enumerate(clips))
            for rows, part in ((gallery.embeddings, 1), (gallery.frame_weights, 2)):
                expected = np.concatenate([p[part] for p in parts])
                np.testing.assert_array_equal(rows, expected)


class PowerCut(BaseException):
    pass


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.helpers.made_galleries import BATCH, Gallery, batch
with Gallery.open(sys.argv[1], writable=True) as gallery:
    for number in range(len(gallery) // BATCH, int(sys.argv[2])):
        gallery.append(*batch(number))
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
