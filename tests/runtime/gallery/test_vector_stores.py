"""What every vector store holds to, by itself and behind a gallery whose writer is killed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import FileState, Header
from dgl_runtime.gallery.gallery import Gallery
from tests import ROOT
from tests.helpers.made_galleries import BATCH, MADE, E, F, batch, found_in, unit
from tests.helpers.stores import KINDS, serve, store_of


@pytest.fixture(scope="module")
def address():
    with serve() as server:
        yield server.address


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param == "graph":
        pytest.importorskip("usearch")
    return request.param


@pytest.fixture
def make(kind, address):
    return store_of(kind, address)


# ---- a store by itself ------------------------------------------------------------------------

EMPTY = Header("bundle-a", "/models/a", E, F, 0)


def rows(num_rows, generation=0):
    return replace(EMPTY, num_rows=num_rows, generation=generation)


def vectors(count, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, E))), rng.random((count, F), np.float32)


def best(embeddings, queries, top_k, among):
    """By the definition: similarities in float64, best first, ties by key."""
    keys = np.flatnonzero(among)
    products = queries[:, None].astype(np.float64) * embeddings[None, keys]
    similarity = products.sum(2).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
    return keys[order], np.take_along_axis(similarity, order, 1)


def every(count):
    return np.ones(count, np.bool_)


@pytest.fixture
def store(make, tmp_path):
    store = make(tmp_path)
    store.sync(EMPTY, clean=True)
    yield store
    store.close()
    store.close()


@pytest.fixture
def filled(store):
    """A store that holds twelve vectors."""
    store.upsert(np.arange(12), *vectors(12))
    store.sync(rows(12))
    return store


def test_vectors_count_when_the_records_say_so(store):
    embeddings, weights = vectors(4)
    store.upsert(np.arange(4), embeddings, weights)
    assert store.top_k(embeddings, 3, every(0))[0].shape == (4, 0)
    assert store.embeddings(slice(None)).shape == (0, E)
    store.sync(rows(4))
    assert store.top_k(embeddings, 1, every(4))[0].tolist() == [[0], [1], [2], [3]]
    np.testing.assert_array_equal(store.embeddings(slice(None)), embeddings)
    np.testing.assert_array_equal(store.frame_weights(slice(None)), weights)


def test_vectors_are_read_by_their_keys_in_any_order(filled):
    embeddings, weights = vectors(12)
    for keys in (np.array([7, 0, 7, 11]), np.array([], np.int64), slice(3, 20), slice(5, 5)):
        np.testing.assert_array_equal(filled.embeddings(keys), embeddings[keys])
        np.testing.assert_array_equal(filled.frame_weights(keys), weights[keys])


def test_vectors_that_are_written_again_are_replaced(filled):
    filled.upsert(np.arange(12, 16), *vectors(4, seed=1))
    for _ in range(2):
        filled.upsert(np.arange(12, 15), *vectors(3, seed=2))
    filled.sync(rows(15))
    for found, old, new in zip(
        (filled.embeddings(slice(None)), filled.frame_weights(slice(None))),
        vectors(12),
        vectors(3, seed=2),
        strict=True,
    ):
        np.testing.assert_array_equal(found, np.concatenate([old, new]))


def test_several_writes_may_count_together(filled):
    parts = [vectors(2, seed=seed) for seed in (1, 2)]
    for first, part in zip((12, 14), parts, strict=True):
        filled.upsert(np.arange(first, first + 2), *part)
    filled.sync(rows(16))
    expected = np.concatenate([vectors(12)[0], *(embeddings for embeddings, _ in parts)])
    np.testing.assert_array_equal(filled.embeddings(slice(None)), expected)


def test_who_opens_to_write_drops_what_does_not_count(filled, make, tmp_path):
    filled.upsert(np.arange(12, 16), *vectors(4, seed=1))
    for _ in range(2):
        again = make(tmp_path)
        again.sync(rows(12), clean=True)
        np.testing.assert_array_equal(again.embeddings(slice(None)), vectors(12)[0])
    again.upsert(np.arange(12, 13), *vectors(1, seed=2))
    again.sync(rows(13))
    np.testing.assert_array_equal(again.embeddings(slice(12, None)), vectors(1, seed=2)[0])


def test_a_reader_keeps_what_counted_while_a_writer_goes_on(filled, make, tmp_path):
    reader = make(tmp_path)
    reader.sync(rows(12))
    embeddings, weights = vectors(4, seed=1)
    filled.upsert(np.arange(12, 16), embeddings, weights)
    filled.sync(rows(16))
    filled.optimize()
    assert (reader.top_k(embeddings, 20, every(12))[0] < 12).all()
    assert filled.top_k(embeddings, 1, every(16))[0].tolist() == [[12], [13], [14], [15]]


@pytest.mark.parametrize("share", [1.0, 0.95, 0.5, 0.0])
@pytest.mark.parametrize("is_optimized", [False, True])
def test_a_search_finds_the_best_of_the_keys_it_may_give(store, share, is_optimized):
    rng = np.random.default_rng(3)
    embeddings, weights = vectors(60)
    embeddings = embeddings[rng.integers(0, 60, 100)]  # some are equal
    store.upsert(np.arange(100), embeddings, weights[rng.integers(0, 60, 100)])
    store.sync(rows(100))
    if is_optimized:
        store.optimize()
        store.warm()
    among = rng.random(100) < share
    queries = vectors(5, seed=4)[0]
    for top_k in (1, 7, 100, 200):
        found, similarity = store.top_k(queries, top_k, among)
        keys, expected = best(embeddings, queries, top_k, among)
        np.testing.assert_array_equal(found, keys)
        np.testing.assert_array_equal(similarity, expected)
        assert (found.dtype, similarity.dtype) == (np.int64, np.float32)


def test_dropping_leaves_the_others_and_twice_does_no_harm(filled):
    embeddings, _ = vectors(12)
    among = ~np.isin(np.arange(12), [0, 5, 11])
    for _ in range(2):
        filled.remove(np.array([0, 5, 11]))
        found, similarity = filled.top_k(embeddings, 12, among)
        keys, expected = best(embeddings, embeddings, 12, among)
        np.testing.assert_array_equal(found, keys)
        np.testing.assert_array_equal(similarity, expected)
    filled.upsert(np.arange(12, 14), *vectors(2, seed=1))
    filled.sync(rows(14))
    found, _ = filled.top_k(vectors(2, seed=1)[0], 1, np.append(among, [True, True]))
    assert found.tolist() == [[12], [13]]


@pytest.mark.parametrize("dropped", [0, 1, 6, 12])
def test_compaction_keeps_the_living_in_their_order(filled, make, tmp_path, dropped):
    living = np.arange(12) >= dropped
    generation = filled.compact(living)
    # As long as the records do not say so, all is as it was: a kill may come here.
    again = make(tmp_path)
    again.sync(rows(12), clean=True)
    kept = [part[living] for part in vectors(12)]
    np.testing.assert_array_equal(again.embeddings(np.flatnonzero(living)), kept[0])
    generation = again.compact(living)
    keys = np.arange(12 - dropped) if generation else np.flatnonzero(living)
    again.sync(rows(len(keys) if generation else 12, generation), clean=True)
    np.testing.assert_array_equal(again.embeddings(keys), kept[0])
    np.testing.assert_array_equal(again.frame_weights(keys), kept[1])
    among = np.isin(np.arange(len(keys) if generation else 12), keys)
    if len(keys):
        assert again.top_k(kept[0], 1, among)[0].ravel().tolist() == keys.tolist()


# ---- behind a gallery -------------------------------------------------------------------------


def held(gallery):
    """Each clip with its embedding and frame weights."""
    found = found_in(gallery)
    embeddings = gallery.embeddings(np.fromiter(found, np.int64))
    return {
        one.clip: (embedding.tobytes(), one.frame_weights.tobytes())
        for one, embedding in zip(found.values(), embeddings, strict=True)
    }


def made(*numbers):
    """What a gallery of some batches holds."""
    return {
        clip: (embedding.tobytes(), weights.tobytes())
        for number in numbers
        for clip, embedding, weights in zip(*batch(number), strict=True)
    }


def path_of_batch(number):
    return batch(number)[0][0].video


def assert_holds_batches(gallery, *numbers):
    """Exactly these batches, and each of their clips is found by its own embedding."""
    assert held(gallery) == made(*numbers)
    assert len(gallery) == BATCH * len(numbers)
    for number in numbers:
        clips, embeddings, _ = batch(number)
        hits, similarity = gallery.search(embeddings, 1)
        found = gallery.look_up(hits[:, 0])
        assert [found[row].clip for row in hits[:, 0].tolist()] == clips
        np.testing.assert_allclose(similarity, 1, atol=1e-6)
    hits, _ = gallery.search(batch(99)[1], 1000)
    assert sorted(hits[0].tolist()) == sorted(found_in(gallery))


def assert_nothing_is_left_behind(gallery, kind):
    """No vector but those of clips, after a compaction of many."""
    if kind == "memory":
        assert gallery._store.shelf.keys(str(gallery.folder)) == list(found_in(gallery))
    else:
        assert gallery.facts.num_rows == len(gallery)


@pytest.fixture
def folder(make, tmp_path):
    """A gallery of four batches."""
    folder = tmp_path / "gallery"
    with Gallery.create(folder, **MADE, store=make) as gallery:
        for number in range(4):
            gallery.ingest(*batch(number))
    return folder


def test_a_gallery_lives_on_any_store(folder, kind, make):
    with Gallery.open(folder, store=make, writable=True) as gallery:
        assert_holds_batches(gallery, 0, 1, 2, 3)
        gallery.remove([path_of_batch(1)])
        assert_holds_batches(gallery, 0, 2, 3)
        gallery.compact()
        assert_holds_batches(gallery, 0, 2, 3)
        assert_nothing_is_left_behind(gallery, kind)
        file = FileState(path_of_batch(2), 1, 1)
        gallery.upsert(file, f"{7:064x}", 60.0)  # it holds another video now
        gallery.ingest(*batch(4))
        assert_holds_batches(gallery, 0, 3, 4)
        gallery.compact()
        gallery.compact()
        hits, _ = gallery.search(batch(4)[1], 3, f"video = '{path_of_batch(0)}' AND start_s > 0.05")
        found = gallery.look_up(set(hits.ravel().tolist()))
        assert [one.clip for one in found.values()] == batch(0)[0][1:]
    for writable in (False, True):
        with Gallery.open(folder, store=make, writable=writable) as gallery:
            assert_holds_batches(gallery, 0, 3, 4)


def test_a_reader_goes_on_while_clips_are_dropped_under_it(folder, make):
    """It finds no clip that it did not know, and those that stay."""
    with Gallery.open(folder, store=make) as reader:
        with Gallery.open(folder, store=make, writable=True) as writer:
            writer.remove([path_of_batch(0), path_of_batch(1)])
            writer.compact()
            writer.ingest(*batch(9))
        hits, _ = reader.search(np.concatenate([batch(2)[1], batch(3)[1]]), 1)
        found = reader.look_up(hits.ravel())
        assert {one.clip for one in found.values()} == {*batch(2)[0], *batch(3)[0]}
        hits, _ = reader.search(batch(9)[1], 100)
        assert set(hits.ravel().tolist()) <= set(range(4 * BATCH))
        assert not reader.is_newest()


def test_a_store_that_takes_nothing_leaves_the_gallery_as_it_was(folder, make):
    with Gallery.open(folder, store=make, writable=True) as gallery:
        full = OSError(28, "No space left on device")
        with mock.patch.object(gallery._store, "upsert", side_effect=full):
            with pytest.raises(GalleryError, match=r"could not take 4 clips: .*keeps the 16 it"):
                gallery.ingest(*batch(4))
        assert_holds_batches(gallery, 0, 1, 2, 3)
        gallery.ingest(*batch(4))
        assert_holds_batches(gallery, 0, 1, 2, 3, 4)


# A writer that kills itself before or after a step, and what the gallery holds then.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from dgl_runtime.gallery.clips import FileState
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.records import Records
from tests.helpers.made_galleries import batch
from tests.helpers.stores import store_of
def deadly(owner, name, after):
    real = getattr(owner, name)
    def run(*given, **named):
        if after:
            real(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, run)
with Gallery.open({folder!r}, store=store_of({kind!r}, {address!r}), writable=True) as gallery:
    {prepare}
    deadly({owner}, {step!r}, {after})
    {act}
"""
REMOVE = "gallery.remove([batch(number)[0][0].video for number in (0, 1)])"
STORE = "type(gallery._store)"
INGEST = "gallery.ingest(*batch(4))"
UPSERT = "gallery.upsert(FileState(batch(2)[0][0].video, 1, 1), '7' * 64, 60.0)"
KILLS = {
    "before the upsert": (STORE, "upsert", False, "", INGEST, (0, 1, 2, 3)),
    "between upsert and records": (STORE, "upsert", True, "", INGEST, (0, 1, 2, 3)),
    "after the records": ("Records", "append", True, "", INGEST, (0, 1, 2, 3, 4)),
    "between records and remove": (STORE, "remove", False, "", REMOVE, (2, 3)),
    "after the remove": (STORE, "remove", True, "", REMOVE, (2, 3)),
    "between a new content and remove": (STORE, "remove", False, "", UPSERT, (0, 1, 3)),
    "before compaction": (STORE, "compact", False, REMOVE, "gallery.compact()", (2, 3)),
    "between compaction and records": (STORE, "compact", True, REMOVE, "gallery.compact()", (2, 3)),
    "before the index": (STORE, "optimize", False, REMOVE, "gallery.compact()", (2, 3)),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_writer_killed_between_two_steps_leaves_the_state_before_or_after(
    folder, kind, address, moment
):
    owner, step, after, prepare, act, numbers = KILLS[moment]
    code = KILLED.format(
        root=str(ROOT),
        folder=str(folder),
        kind=kind,
        address=address,
        prepare=prepare or "pass",
        owner=owner,
        step=step,
        after=after,
        act=act,
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    make = store_of(kind, address)
    with Gallery.open(folder, store=make) as reader:
        assert_holds_batches(reader, *numbers)
    with Gallery.open(folder, store=make, writable=True) as writer:
        assert_holds_batches(writer, *numbers)
        writer.ingest(*batch(8))
        assert_holds_batches(writer, *numbers, 8)
        writer.compact()
        assert_holds_batches(writer, *numbers, 8)
        if (
            kind == "memory" or len(numbers) == 2
        ):  # files wait until a quarter of their rows are dead
            assert_nothing_is_left_behind(writer, kind)
    with Gallery.open(folder, store=make) as reader:
        assert_holds_batches(reader, *numbers, 8)
