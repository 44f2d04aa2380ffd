"""Exact and approximate search of galleries."""

import hashlib
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import nearest
from dgl_runtime.gallery.folder import GRAPH, path_of
from dgl_runtime.gallery.gallery import Clip, Gallery
from dgl_runtime.gallery.nearest import ApproximateIndex, exact_top_k
from tests.helpers.made_galleries import BATCH, MADE, E, F, batch, gallery_of, through_graph, unit


def brute_force(embeddings, queries, top_k):
    similarity = (queries[:, None].astype(np.float64) * embeddings).sum(2).astype(np.float32)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
    return rows, np.take_along_axis(similarity, rows, 1)


@st.composite
def vectors(draw):
    """Embeddings with many equal ones, and queries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_clips = draw(st.integers(1, 40))
    different = unit(rng.standard_normal((draw(st.integers(1, 40)), 16)))
    embeddings = different[rng.integers(0, len(different), num_clips)]
    return embeddings, unit(rng.standard_normal((draw(st.integers(1, 5)), 16)))


def searched(embeddings, queries, top_k, rows_at_once, queries_at_once=2):
    with (
        mock.patch.object(nearest, "_ROW_BLOCK", rows_at_once),
        mock.patch.object(nearest, "_QUERY_BLOCK", queries_at_once),
    ):
        return exact_top_k(embeddings, queries, top_k, np.ones(len(embeddings), np.bool_))


@given(vectors(), st.integers(1, 45), st.integers(1, 45))
def test_exact_search_equals_brute_force_whatever_the_block_size(case, top_k, rows_at_once):
    rows, similarity = searched(*case, top_k, rows_at_once)
    expected_rows, expected_similarity = brute_force(*case, top_k)
    np.testing.assert_array_equal(similarity, expected_similarity)
    np.testing.assert_array_equal(rows, expected_rows)
    assert (rows.dtype, similarity.dtype) == (np.int64, np.float32)


@given(vectors(), st.integers(1, 44), st.integers(1, 45))
def test_top_k_is_a_prefix_of_top_k_plus_one(case, top_k, rows_at_once):
    fewer = searched(*case, top_k, rows_at_once)
    more = searched(*case, top_k + 1, rows_at_once)
    for short, long in zip(fewer, more, strict=True):
        np.testing.assert_array_equal(short, long[:, :top_k])


@given(vectors(), st.integers(1, 45), st.randoms(use_true_random=False))
def test_a_permutation_of_the_gallery_permutes_the_results(case, top_k, shuffle):
    embeddings, queries = case
    order = list(range(len(embeddings)))
    shuffle.shuffle(order)
    rows, similarity = searched(embeddings, queries, top_k, 7)
    permuted, permuted_similarity = searched(embeddings[order], queries, top_k, 7)
    np.testing.assert_array_equal(permuted_similarity, similarity)
    np.testing.assert_array_equal(embeddings[order][permuted], embeddings[rows])


@given(vectors(), st.integers(1, 45))
def test_a_query_finds_the_same_alone_and_in_a_batch(case, top_k):
    embeddings, queries = case
    every = np.ones(len(embeddings), np.bool_)
    rows, similarity = exact_top_k(embeddings, queries, top_k, every)
    for number in range(len(queries)):
        alone, alone_similarity = exact_top_k(
            embeddings, queries[number : number + 1], top_k, every
        )
        np.testing.assert_array_equal(alone[0], rows[number])
        np.testing.assert_array_equal(alone_similarity[0], similarity[number])


@given(vectors(), st.integers(1, 45), st.integers(1, 45), st.randoms(use_true_random=False))
def test_a_search_among_some_rows_is_a_search_of_a_gallery_of_these(
    case, top_k, rows_at_once, random
):
    embeddings, queries = case
    among = np.array([random.random() < 0.5 for _ in embeddings])
    with mock.patch.object(nearest, "_ROW_BLOCK", rows_at_once):
        rows, similarity = exact_top_k(embeddings, queries, top_k, among)
    inside, expected = brute_force(embeddings[among], queries, top_k)
    np.testing.assert_array_equal(rows, np.flatnonzero(among)[inside])
    np.testing.assert_array_equal(similarity, expected)


def test_more_hits_than_clips_gives_all_clips(tmp_path):
    with Gallery.open(gallery_of(tmp_path, 2)) as gallery:
        rows, _ = gallery.search(batch(0)[1][:1], 100)
    np.testing.assert_array_equal(np.sort(rows), [np.arange(8)])


# ---- approximate search ----------------------------------------------------------------------


def clustered(num_clips, seed=0):
    centres = np.random.default_rng(1).standard_normal((50, E))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(0, 50, num_clips)] + 0.5 * rng.standard_normal((num_clips, E)))


def fill(gallery, embeddings, video="v.mp4"):
    first = len(gallery)
    clips = [Clip(video, video, first + i, first + i + 1, 1e6) for i in range(len(embeddings))]
    gallery.ingest(clips, embeddings, np.ones((len(embeddings), F), np.float32))


def recall(found, expected):
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    return sum(hits) / expected.size


def exactly(gallery, queries, top_k):
    embeddings = gallery.embeddings()
    return exact_top_k(embeddings, queries, top_k, np.ones(len(embeddings), np.bool_))


def graph_file(gallery):
    return path_of(gallery.folder, GRAPH, 0)


@pytest.fixture
def indexed(tmp_path):
    with Gallery.create(tmp_path / "indexed", **MADE, store=through_graph()) as gallery:
        fill(gallery, clustered(2000))
        gallery.compact()
        yield gallery


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A path, what a good index file there holds, and its embeddings."""
    path, embeddings = tmp_path_factory.mktemp("built") / "clips.usearch", clustered(200)
    index = ApproximateIndex.empty(E)
    index.add(embeddings, threads=1)
    index.save(path, embeddings)
    return path, path.read_bytes(), embeddings


def test_a_larger_gallery_is_searched_with_more_in_view():
    assert [nearest.breadth_for(size) for size in (1, 100_000, 400_000)] == [512, 512, 1024]


def test_approximate_hits_are_nearly_complete_and_their_similarities_exact(indexed):
    queries = clustered(50, seed=3)
    exact, exact_similarity = exactly(indexed, queries, 10)
    rows, similarity = indexed.search(queries, 10)
    assert recall(rows, exact) > 0.98
    for query in range(len(queries)):
        known = dict(zip(exact[query], exact_similarity[query], strict=True))
        for row, value in zip(rows[query], similarity[query], strict=True):
            assert known.get(row, value) == value
        order = np.lexsort((rows[query], -similarity[query]))
        np.testing.assert_array_equal(order, np.arange(10))


def test_clips_appended_after_the_index_are_found_exactly(indexed):
    fill(indexed, clustered(30, seed=4))
    queries = clustered(30, seed=4)
    for reopened in (indexed, Gallery.open(indexed.folder, store=through_graph())):
        rows, similarity = reopened.search(queries, 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(2000, 2030))
        np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_building_again_extends_the_index(indexed):
    fill(indexed, clustered(100, seed=4))
    with mock.patch.object(ApproximateIndex, "add", autospec=True) as add:
        indexed.compact()
    assert len(add.call_args.args[0]) == 2000  # what is there is loaded, not built again
    indexed.compact()
    index = ApproximateIndex.open(graph_file(indexed), indexed.embeddings())
    assert len(index) == 2100
    rows, _ = indexed.search(clustered(100, seed=4), 10)
    assert recall(rows, exactly(indexed, clustered(100, seed=4), 10)[0]) > 0.98


def test_after_a_compaction_searches_go_through_a_graph_of_the_clips_that_stay(indexed):
    fill(indexed, clustered(1500, seed=4), video="stays.mp4")
    queries = clustered(20, seed=3)
    indexed.search(queries, 10)  # so that the graph of before is open
    indexed.remove(["v.mp4"])
    indexed.compact()
    assert len(indexed) == indexed.facts.num_rows == 1500
    rows, _ = indexed.search(queries, 10)
    assert recall(rows, exactly(indexed, queries, 10)[0]) > 0.98
    path = path_of(indexed.folder, GRAPH, 1)
    assert len(ApproximateIndex.open(path, indexed.embeddings())) == 1500


@pytest.mark.parametrize("share", [0.95, 0.3])
def test_a_filter_made_before_clips_were_dropped_finds_none_of_them(indexed, share):
    """Of nearly all clips through the graph, of few exactly."""
    fill(indexed, clustered(40, seed=4), video="gone.mp4")
    fill(indexed, clustered(40, seed=5), video="stays.mp4")
    among = indexed.select(f"start_s < {round(2000 * share)} OR start_s >= 2000")
    indexed.remove(["gone.mp4"])
    queries = clustered(20, seed=4)
    living = among & ~np.isin(np.arange(2080), range(2000, 2040))
    rows, similarity = indexed.search(queries, 10, among)
    exact, exact_similarity = exact_top_k(indexed.embeddings(), queries, 10, living)
    assert living[rows].all()
    assert recall(rows, exact) > 0.98
    np.testing.assert_allclose(similarity, exact_similarity, atol=0.05)


def test_all_clips_are_returned_when_more_are_asked_for_than_the_index_gives(indexed):
    queries = clustered(2, seed=3)
    for top_k in (1999, 2000, 5000):
        rows, similarity = indexed.search(queries, top_k)
        expected = exactly(indexed, queries, top_k)
        np.testing.assert_array_equal(similarity.shape, (2, min(top_k, 2000)))
        assert recall(rows, expected[0]) > 0.98
        assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_a_query_to_which_the_graph_gives_too_little_is_searched_exactly(indexed):
    queries = clustered(3, seed=3)
    indexed.search(queries, 10)
    few = SimpleNamespace(keys=np.arange(9, dtype=np.uint64))
    with mock.patch.object(type(indexed._store._graph._index), "search", return_value=few):
        rows, _ = indexed.search(queries, 10)
        np.testing.assert_array_equal(rows, exactly(indexed, queries, 10)[0])


def test_without_an_index_a_large_gallery_is_searched_exactly(tmp_path):
    with Gallery.open(gallery_of(tmp_path, 3), store=through_graph()) as gallery:
        queries = batch(0)[1]
        for found, exact in zip(
            gallery.search(queries, 5), exactly(gallery, queries, 5), strict=True
        ):
            np.testing.assert_array_equal(found, exact)


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: b"garbage" * 99,
        flipped,
    ],
)
def test_a_damaged_index_is_refused_and_built_again(indexed, damage):
    path = graph_file(indexed)
    path.write_bytes(damage(path.read_bytes()))
    queries = clustered(5, seed=3)
    with Gallery.open(indexed.folder, store=through_graph()) as reader:
        with pytest.raises(GalleryError, match=r"does not fit the gallery: .* Build it again") as e:
            reader.search(queries, 10)
        assert "\n" not in str(e.value)
    path.rename(path.with_suffix(".away"))
    with Gallery.open(indexed.folder, store=through_graph()) as reader:
        assert reader.search(queries, 10)[0].shape == (5, 10)
    path.with_suffix(".away").rename(path)
    indexed.compact()
    assert indexed.search(queries, 10)[0].shape == (5, 10)


def test_an_index_of_other_embeddings_is_refused(indexed, tmp_path):
    path = graph_file(indexed)
    theirs = path.read_bytes()
    with Gallery.create(tmp_path / "other", **MADE, store=through_graph()) as other:
        embeddings = clustered(2000, seed=9)
        fill(other, embeddings)
        graph_file(other).write_bytes(theirs)
        with pytest.raises(GalleryError, match="it was made of other embeddings"):
            other.search(clustered(1), 1)
        other.compact()
        rows, _ = other.search(embeddings[:20], 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(20))
    with Gallery.create(tmp_path / "smaller", **MADE, store=through_graph()) as smaller:
        fill(smaller, clustered(1000))
        graph_file(smaller).write_bytes(theirs)
        with pytest.raises(GalleryError, match="covers 2000 clips, the gallery opened here 1000"):
            smaller.search(clustered(1), 1)
    with Gallery.create(
        tmp_path / "wider", **{**MADE, "embed_dim": 9}, store=through_graph()
    ) as wider:
        graph_file(wider).write_bytes(theirs)
        with pytest.raises(GalleryError, match="its vectors are not 9 numbers wide"):
            wider.search(np.eye(9, dtype=np.float32), 1)


def test_a_sealed_file_that_usearch_cannot_read_is_refused(tmp_path):
    path = tmp_path / "clips.usearch"
    no_vectors, garbage = bytes(8), b"usearch" + b"x" * 500
    digest = hashlib.sha256(no_vectors + garbage).digest()
    path.write_bytes(no_vectors + garbage + b"dgl-ann2" + bytes(32) + digest + bytes(32))
    with pytest.raises(GalleryError, match="USearch cannot read it"):
        ApproximateIndex.open(path, clustered(10))


def test_damaged_vectors_make_no_similarity_wrong_and_are_not_written_again(indexed):
    path = graph_file(indexed)
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + whole[8 : 8 + E] + bytes(E) * 9 + whole[8 + 10 * E :])
    queries = clustered(20, seed=3)
    rows, similarity = indexed.search(queries, 10)
    for query, found, values in zip(queries, rows, similarity, strict=True):
        np.testing.assert_allclose(values, indexed.embeddings()[found] @ query, atol=1e-6)
    with pytest.raises(GalleryError, match="its checksum differs from its contents"):
        ApproximateIndex.open(path, indexed.embeddings(), extend=True)
    fill(indexed, clustered(100, seed=4))
    indexed.compact()
    assert path.read_bytes()[8 : 8 + 2000 * E] == whole[8 : 8 + 2000 * E]


@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_any_damage_to_the_graph_is_refused_at_opening(built, place, mask):
    path, whole, embeddings = built
    vectors = len(embeddings) * E
    places = [*range(8), *range(8 + vectors, len(whole) - 32)]  # the last 32 seal the vectors
    damaged = bytearray(whole)
    damaged[places[place % len(places)]] ^= mask
    path.write_bytes(damaged)
    with pytest.raises(GalleryError, match="does not fit the gallery"):
        ApproximateIndex.open(path, embeddings)


def test_an_index_that_cannot_be_written_leaves_the_old_one(indexed):
    fill(indexed, clustered(100, seed=4))
    before = graph_file(indexed).read_bytes()
    refuse = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with (
        refuse,
        pytest.raises(GalleryError, match=r"cannot be written: .*No space left.*Make room"),
    ):
        indexed.compact()
    assert graph_file(indexed).read_bytes() == before


def test_a_reader_searches_exactly_when_the_index_has_outgrown_it(tmp_path):
    pytest.importorskip("usearch")
    folder = gallery_of(tmp_path / "gallery", 3)
    with Gallery.open(folder, store=through_graph()) as reader:
        with Gallery.open(folder, writable=True, store=through_graph()) as writer:
            writer.ingest(*batch(3))
            writer.compact()
        rows, _ = reader.search(batch(1)[1], 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(BATCH, 2 * BATCH))


@pytest.mark.parametrize(("added", "is_extended"), [(40, False), (41, True)])
def test_an_index_is_extended_once_it_lacks_more_than_a_fiftieth(indexed, added, is_extended):
    """2,000 of 2,040 clips are covered, or 2,000 of 2,041."""
    fill(indexed, clustered(added, seed=4))
    indexed.compact()
    covered = len(ApproximateIndex.open(graph_file(indexed), indexed.embeddings()))
    assert covered == 2000 + (added if is_extended else 0)


@pytest.mark.parametrize(("rows", "is_built"), [(2000, True), (2001, False)])
def test_only_a_large_gallery_gets_an_index(tmp_path, rows, is_built):
    pytest.importorskip("usearch")
    with Gallery.create(tmp_path / "g", **MADE, store=through_graph(rows)) as gallery:
        fill(gallery, clustered(2000))
        gallery.compact()
        assert graph_file(gallery).exists() == is_built


def test_warming_opens_the_index_and_tells_of_damage(indexed):
    with Gallery.open(indexed.folder, store=through_graph()) as reader:
        reader.warm()
        with mock.patch.object(ApproximateIndex, "open", side_effect=AssertionError):
            reader.search(clustered(1), 1)
    graph_file(indexed).write_bytes(b"garbage")
    for rows, refuses in ((2000, True), (2001, False)):
        with Gallery.open(indexed.folder, store=through_graph(rows)) as reader:
            if refuses:
                with pytest.raises(GalleryError, match="does not fit the gallery"):
                    reader.warm()
            else:
                reader.warm()
