"""The approximate index as a file, and searches among some rows; through galleries: test_search.py."""

import hashlib
import mmap
import os
import struct
import tracemalloc
from unittest import mock

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import nearest
from dgl_runtime.gallery.nearest import ApproximateIndex, exact_top_k
from tests.helpers.made_galleries import unit

pytest.importorskip("usearch")


def vectors(num_clips, width=16, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((num_clips, width)))


def index_of(embeddings):
    index = ApproximateIndex.empty(embeddings.shape[1])
    index.add(embeddings, threads=1)
    return index


@pytest.fixture
def saved(tmp_path):
    """An index file and its embeddings."""
    embeddings = vectors(300)
    index_of(embeddings).save(tmp_path / "clips.usearch", embeddings)
    return tmp_path / "clips.usearch", embeddings


@pytest.mark.parametrize(("width", "limit"), [(16, 1.0), (36, 1.0), (144, 0.5), (512, 0.2651650)])
def test_the_file_holds_each_number_rounded_to_127_steps(tmp_path, width, limit):
    embeddings = vectors(40, width)
    embeddings[0] = np.eye(width)[3]  # beyond the limit, which is 6 times the root mean square
    embeddings[1] = -embeddings[0]
    index_of(embeddings).save(tmp_path / "clips.usearch", embeddings)
    held = np.fromfile(tmp_path / "clips.usearch", np.int8, 40 * width, offset=8)
    steps = np.clip(embeddings.astype(np.float64) / limit, -1, 1) * 127
    assert abs(held.reshape(40, width) - steps).max() <= 0.501
    assert (held[3], held[width + 3]) == (127, -127)


def test_clips_are_added_in_blocks_each_once(saved, tmp_path):
    path, embeddings = saved
    with mock.patch.object(nearest, "_ROW_BLOCK", 100):
        index = index_of(embeddings)
    assert len(index) == 300
    index.save(tmp_path / "again.usearch", embeddings)
    vectors_end = 8 + 300 * 16
    assert (tmp_path / "again.usearch").read_bytes()[:vectors_end] == path.read_bytes()[
        :vectors_end
    ]


def test_the_file_ends_in_digests_of_clips_graph_and_vectors(saved):
    path, embeddings = saved
    data = path.read_bytes()
    assert struct.unpack("<II", data[:8]) == (300, 16)
    graph = 8 + 300 * 16
    seal = [data[-104:-96], *(data[end - 32 : end or None] for end in (-64, -32, 0))]
    sampled = embeddings[[int(299 * i / 63) for i in range(64)]]
    assert seal == [
        b"dgl-ann2",
        hashlib.sha256(sampled.tobytes()).digest(),
        hashlib.sha256(data[:8] + data[graph:-104]).digest(),
        hashlib.sha256(data[8:graph]).digest(),
    ]


def test_a_file_is_hashed_whole_whatever_the_size_of_a_piece(saved):
    path, embeddings = saved
    with mock.patch.object(nearest, "_HASH_BLOCK", 1000):
        for extend in (False, True):
            assert len(ApproximateIndex.open(path, embeddings, extend=extend)) == 300


def test_a_whole_file_is_synced_and_then_takes_its_name(saved):
    path, embeddings = saved
    happened, replace, fsync = [], os.replace, os.fsync

    def synced(file):
        happened.append(("sync", os.fstat(file).st_size))
        fsync(file)

    def named(*arguments):
        happened.append("name")
        replace(*arguments)

    with mock.patch("os.fsync", synced), mock.patch("os.replace", named):
        index_of(embeddings).save(path, embeddings)
    assert happened == [("sync", path.stat().st_size), "name"]
    assert [one.name for one in path.parent.iterdir()] == ["clips.usearch"]


def test_an_opened_file_stays_on_disk_and_is_searched_with_the_breadth_asked_for(saved):
    path, embeddings = saved
    opened = ApproximateIndex.open(path, embeddings)
    assert isinstance(opened._contents.obj, mmap.mmap)
    assert len(opened._contents) == path.stat().st_size - 104  # all but the seal
    mapped = opened._index
    loaded = ApproximateIndex.open(path, embeddings, extend=True, breadth=777)._index
    assert (mapped.expansion_search, loaded.expansion_search) == (512, 777)
    assert (len(mapped), len(loaded)) == (300, 300)
    assert mapped.memory_usage < path.stat().st_size / 2 < loaded.memory_usage
    with mock.patch.object(nearest, "breadth_for", return_value=99) as chosen:
        assert ApproximateIndex.open(path, embeddings)._index.expansion_search == 99
    chosen.assert_called_once_with(300)


@pytest.mark.parametrize("dimensions", [(299, 16), (300, 17), (2**31, 16), (0, 0), None])
def test_a_file_whose_graph_is_not_behind_its_vectors_is_refused(saved, dimensions):
    path, embeddings = saved
    data = path.read_bytes()
    head = data[:5] if dimensions is None else struct.pack("<II", *dimensions) + data[8:]
    path.write_bytes(head)
    with pytest.raises(GalleryError, match=r"cannot be read \(no vectors and graph as USearch"):
        ApproximateIndex.open(path, embeddings)


def test_another_seal_is_refused(saved):
    path, embeddings = saved
    path.write_bytes(path.read_bytes().replace(b"dgl-ann2", b"dgl-ann3"))
    with pytest.raises(GalleryError, match="its checksum differs from its contents"):
        ApproximateIndex.open(path, embeddings)


def test_what_usearch_does_not_recognise_is_refused(saved):
    with (
        mock.patch("usearch.index.Index.restore", return_value=None),
        pytest.raises(GalleryError, match=r"clips\.usearch does not fit the gallery: its vectors"),
    ):
        ApproximateIndex.open(*saved)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_only_rows_among_those_asked_for_are_found_and_the_graph_finds_them(saved, share):
    path, embeddings = saved
    index, queries = ApproximateIndex.open(path, embeddings), vectors(20, seed=1)
    among = np.random.default_rng(2).random(300) < share
    with mock.patch.object(nearest, "_exact_block", wraps=nearest._exact_block) as exact:
        rows, similarity = index.top_k(embeddings, queries, 10, among)
    assert [len(call.args[0]) for call in exact.mock_calls] == [0]  # the rows after those covered
    expected, expected_similarity = exact_top_k(embeddings, queries, 10, among)
    assert among[rows].all()
    assert (rows == expected).mean() > 0.98
    np.testing.assert_allclose(similarity, expected_similarity, atol=0.05)


def test_hits_behind_those_covered_and_dropped_ones_are_as_in_an_exact_search(saved):
    path, embeddings = saved
    more = np.concatenate([embeddings, vectors(40, seed=3)])
    among = np.ones(340, np.bool_)
    among[[5, 290, 301, 339]] = False
    queries = np.concatenate([more[[5, 290, 301, 339, 310]], vectors(3, seed=4)])
    index = ApproximateIndex.open(path, more)
    rows, similarity = index.top_k(more, queries, 5, among)
    expected, expected_similarity = exact_top_k(more, queries, 5, among)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarity, expected_similarity)


def test_the_graph_is_asked_in_full_steps_for_twice_as_many_as_are_wanted(saved):
    path, embeddings = saved
    index, every = ApproximateIndex.open(path, embeddings), np.ones(300, np.bool_)
    query = unit(np.concatenate([[-3.0], np.linspace(-1, 1, 15)])[None])
    for top_k, wanted in ((1, 128), (64, 128), (70, 140)):
        with mock.patch.object(index, "_index", wraps=index._index) as graph:
            graph.__len__ = lambda self: 300
            index.top_k(embeddings, query, top_k, every)
        ((_, (asked, most), options),) = graph.search.mock_calls
        np.testing.assert_array_equal(asked, np.rint(query[0] / query[0].min() * -127))
        assert (most, options) == (wanted, {"threads": 1})


def test_nearly_equal_clips_are_ranked_by_their_exact_similarity():
    # float32 products of these differ from the exact ones by more than the clips differ
    rng = np.random.default_rng(0)
    query = vectors(1, 800, seed=5)
    embeddings = unit(query + 1e-4 * rng.standard_normal((1000, 800)))
    exact = (embeddings.astype(np.float64) * query).sum(axis=1).astype(np.float32)
    expected = np.lexsort((np.arange(1000), -exact))[:10]
    for queries in (query, np.repeat(query, 10, axis=0)):
        rows, similarity = exact_top_k(embeddings, queries, 10, np.ones(1000, np.bool_))
        np.testing.assert_array_equal(rows, [expected] * len(queries))
        np.testing.assert_array_equal(similarity, [exact[expected]] * len(queries))


def test_only_clips_that_may_be_hits_are_compared_exactly():
    embeddings, queries = vectors(1000), vectors(4, seed=1)
    with (
        mock.patch.object(nearest, "_ROW_BLOCK", 100),
        mock.patch.object(nearest, "_similarity", wraps=nearest._similarity) as compared,
    ):
        exact_top_k(embeddings, queries, 3, np.ones(1000, np.bool_))
    assert sum(len(call.args[2]) for call in compared.mock_calls) < 4 * 20  # 3 of each block: 30


def test_embeddings_are_copied_only_where_rows_are_left_out():
    embeddings, among = vectors(350), np.ones(350, np.bool_)
    among[220], among[300:] = False, False
    with mock.patch.object(nearest, "_ROW_BLOCK", 100):
        blocks = list(nearest._blocks(embeddings, among))
    assert [(rows[0], len(rows), len(block)) for rows, block in blocks] == [
        (0, 100, 100),
        (100, 100, 100),
        (200, 99, 99),
    ]
    assert [np.shares_memory(block, embeddings) for _, block in blocks] == [True, True, False]
    for rows, block in blocks:
        np.testing.assert_array_equal(block, embeddings[rows])


def test_a_large_exact_search_needs_little_memory():
    embeddings, queries = vectors(70_000, 8), vectors(520, 8, seed=1)
    tracemalloc.start()
    try:
        rows, _ = exact_top_k(embeddings, queries, 3, np.ones(70_000, np.bool_))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.shape == (520, 3)
    assert peak < 40e6  # two blocks; all similarities would be 146 MB
