"""The files of the local vector store: what the writer cuts off, and what it leaves alone."""

import os

import numpy as np
import pytest

from dgl_runtime.gallery.clips import Header
from dgl_runtime.gallery.local_vector_store import LocalVectors
from tests.helpers.made_galleries import E, F


def header(num_rows, generation=0):
    return Header("bundle-a", "/models/a", E, F, num_rows, generation)


def rows_of(count):
    return np.arange(count), np.ones((count, E), np.float32), np.ones((count, F), np.float32)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_writer_removes_what_does_not_count_and_a_reader_nothing(tmp_path):
    store = LocalVectors(tmp_path)
    store.sync(header(0), clean=True)
    store.upsert(*rows_of(5))
    remains = {"embeddings.1.f32", "frame_weights.1.f32", "clips.1.usearch", "clips.0.usearch.tmp"}
    foreign = {"embeddings.0.f32.bak", "my clips.1.usearch", "frame_weights.old", "notes.txt"}
    for name in remains | foreign:
        (tmp_path / name).write_bytes(b"1234")
    counting = {"embeddings.0.f32", "frame_weights.0.f32"}
    LocalVectors(tmp_path).sync(header(3))
    assert names(tmp_path) == counting | foreign | remains
    assert (tmp_path / "embeddings.0.f32").stat().st_size == 4 * 5 * E
    LocalVectors(tmp_path).sync(header(3), clean=True)
    assert names(tmp_path) == counting | foreign
    assert (tmp_path / "embeddings.0.f32").stat().st_size == 4 * 3 * E
    assert (tmp_path / "frame_weights.0.f32").stat().st_size == 4 * 3 * F


@pytest.mark.parametrize(("num_rows", "num_dead", "generation"), [(4, 1, 1), (5, 1, 0), (5, 2, 1)])
def test_files_are_written_anew_once_a_quarter_is_dead(tmp_path, num_rows, num_dead, generation):
    store = LocalVectors(tmp_path)
    store.sync(header(0), clean=True)
    store.upsert(*rows_of(num_rows))
    store.sync(header(num_rows))
    assert store.compact(np.arange(num_rows) >= num_dead) == generation
    assert store.compact(np.ones(num_rows, np.bool_)) == 0


def test_new_files_are_whole_on_disk_before_the_records_may_name_them(tmp_path, monkeypatch):
    store = LocalVectors(tmp_path)
    store.sync(header(0), clean=True)
    store.upsert(*rows_of(6))
    store.sync(header(6))
    synced, fsync = {}, os.fsync

    def note(file):
        state = os.fstat(file)
        synced[state.st_ino] = state.st_size
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    store.compact(np.arange(6) > 2)
    sizes = {"embeddings.1.f32": 4 * 3 * E, "frame_weights.1.f32": 4 * 3 * F}
    for name, size in sizes.items():
        assert synced[(tmp_path / name).stat().st_ino] == size
    assert list(synced)[-1] == tmp_path.stat().st_ino  # the folder that holds their names, last


@pytest.mark.parametrize("num_rows", [0, 3])
def test_nobody_changes_vectors_by_looking_at_them(tmp_path, num_rows):
    store = LocalVectors(tmp_path)
    store.sync(header(0), clean=True)
    if num_rows:
        store.upsert(*rows_of(num_rows))
        store.sync(header(num_rows))
    for found in (store.embeddings(slice(None)), store.frame_weights(slice(None))):
        assert len(found) == num_rows
        assert not found.flags.writeable
