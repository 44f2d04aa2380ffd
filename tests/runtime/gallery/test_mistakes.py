"""Single facts of galleries and of indexing that would be wrong in silence."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.gallery import Clip, FileState, Gallery, Known
from dgl_runtime.gallery.nearest import ApproximateIndex
from tests.helpers.made_galleries import (
    BATCH,
    MADE,
    E,
    F,
    batch,
    clips_of,
    gallery_of,
    through_graph,
    unit,
)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "g", **MADE) as gallery:
        yield gallery


# ---- which file is known ------------------------------------------------------------------------


def test_a_file_is_known_only_while_path_size_and_time_are_the_same(gallery):
    state = FileState("/v/a.mp4", 1000, 5)
    gallery.upsert(state, "a" * 64, 9.0)
    gallery.upsert(FileState("/v/b.mp4", 1000, 5), "b" * 64, 9.0)

    def known(one):
        return gallery.plan([one], "all")[0].content_sha256

    assert known(state) == "a" * 64
    assert known(replace(state, path="/v/b.mp4")) == "b" * 64
    for other in (
        replace(state, size=1001),
        replace(state, size=999),
        replace(state, mtime_ns=6),  # changed without changing its size
        replace(state, mtime_ns=4),
        replace(state, path="/v/c.mp4"),
    ):
        assert known(other) is None


def test_a_clip_is_known_by_its_content_and_both_ends(gallery):
    gallery.ingest([Clip("/v/a.mp4", "a" * 64, 1.0, 2.0, 9.0)], *rows_of(1))
    spans = [("a", 1.0, 2.0), ("b", 1.0, 2.0), ("a", 0.0, 2.0), ("a", 1.0, 3.0)]
    clips = [Clip("/v/b.mp4", content * 64, *times, 9.0) for content, *times in spans]
    assert gallery.missing(clips) == [1, 2, 3]


def test_a_video_is_cut_only_by_the_segmentation_that_was_finished(gallery):
    files = [FileState(f"/v/{name}.mp4", 1, 1) for name in "ab"]
    for file, name in zip(files, "ab", strict=True):
        gallery.upsert(file, name * 64, 9.0)
    gallery.finish("a" * 64, "all 10.0 None None")
    gallery.finish("a" * 64, "all 10.0 None None")  # again does no harm
    a, b = gallery.plan(files, "all 10.0 None None")
    assert (a.is_complete, b.is_complete) == (True, False)
    assert not gallery.plan(files, "all 5.0 None None")[0].is_complete


def test_a_plan_counts_the_clips_of_each_video(gallery):
    clips, *vectors = batch(0)
    file = FileState(clips[0].video, 1, 1)
    gallery.ingest(clips, *vectors)
    gallery.ingest(*batch(1))
    gallery.upsert(file, clips[0].content_sha256, 60.0)
    known, unknown = gallery.plan([file, FileState("/v/new.mp4", 1, 1)], "all")
    assert known == Known(clips[0].content_sha256, BATCH, is_complete=False)
    assert unknown == Known()


def rows_of(count, first=0):
    """Embeddings that tell their rows: row n points to axis n and a little along the first."""
    embeddings = np.full((count, E), 0.01, np.float32)
    embeddings[np.arange(count), (first + np.arange(count)) % E] = 1
    return unit(embeddings), np.full((count, F), first + 0.5, np.float32)


# ---- compaction and search --------------------------------------------------------------------------


def test_compaction_keeps_each_clip_with_its_own_row(tmp_path):
    """Where clips of two videos lie between each other's, and not in the order of their times."""
    with Gallery.create(tmp_path / "g", **MADE) as gallery:
        order = [("b", 5.0), ("x", 0.0), ("a", 1.0), ("b", 0.0), ("x", 1.0), ("a", 0.0), ("x", 2.0)]
        for row, (name, start_s) in enumerate(order):
            clip = Clip(f"/v/{name}.mp4", name * 64, start_s, start_s + 1, 9.0)
            gallery.ingest([clip], *rows_of(1, first=row))
        gallery.remove(["/v/x.mp4"])
        gallery.compact()
        assert gallery.embeddings().shape[0] == 4
        for row, (clip, first) in enumerate(
            zip([("b", 5.0), ("a", 1.0), ("b", 0.0), ("a", 0.0)], (0, 2, 3, 5), strict=True)
        ):
            found = gallery.look_up([row])[row]
            assert (found.clip.video, found.clip.start_s) == (f"/v/{clip[0]}.mp4", clip[1])
            np.testing.assert_array_equal(gallery.embeddings()[row], rows_of(1, first)[0][0])
            np.testing.assert_array_equal(found.frame_weights, rows_of(1, first)[1][0])


def test_a_gallery_is_compacted_as_often_as_there_is_room_to_take_back(gallery):
    for start_s in range(3):
        for name in "ab":
            clip = Clip(f"/v/{name}.mp4", f"{start_s}{name}" * 32, start_s, start_s + 1, 9.0)
            gallery.ingest([clip], *rows_of(1))
        gallery.remove(["/v/b.mp4"])
        gallery.compact()
        assert gallery.embeddings().shape[0] == len(gallery)


@pytest.mark.parametrize(("dropped", "compacts"), [(3, False), (4, True)])
def test_a_gallery_is_compacted_from_a_quarter_of_dead_rows_on(gallery, dropped, compacts):
    for number in range(3):
        gallery.ingest(*batch(number))
    for row in range(dropped):
        gallery.ingest([Clip(f"/v/{row}.mp4", f"c{row}" * 32, 0.0, 1.0, 9.0)], *rows_of(1))
    gallery.remove([f"/v/{row}.mp4" for row in range(dropped)])
    gallery.compact()
    assert gallery.embeddings().shape[0] == 3 * BATCH + (0 if compacts else dropped)


@pytest.mark.parametrize(
    ("kept", "approximate_from", "is_graph"),
    [(100, 100, True), (90, 100, True), (89, 100, False), (1, 100, False), (100, 101, False)],
)
def test_the_graph_is_asked_only_in_a_large_gallery_where_a_filter_leaves_nine_rows_of_ten(
    tmp_path, monkeypatch, kept, approximate_from, is_graph
):
    pytest.importorskip("usearch")
    asked = []
    real = ApproximateIndex.top_k
    monkeypatch.setattr(ApproximateIndex, "top_k", lambda *given: asked.append(1) or real(*given))
    clips = [Clip("v.mp4", "a" * 64, i, i + 1, 1e6) for i in range(100)]
    embeddings = unit(np.random.default_rng(0).standard_normal((100, E)))
    with Gallery.create(tmp_path / "g", **MADE, store=through_graph(100)) as gallery:
        gallery.ingest(clips, embeddings, np.ones((100, F), np.float32))
        gallery.compact()
    with Gallery.open(tmp_path / "g", store=through_graph(approximate_from)) as gallery:
        rows, _ = gallery.search(embeddings[:1], 1, f"start_s < {kept}")
    assert rows.tolist() == [[0]]
    assert bool(asked) == is_graph


def test_a_gallery_of_no_batches_is_read(tmp_path):
    with Gallery.open(gallery_of(tmp_path / "g", 0)) as gallery:
        assert len(gallery) == 0
        assert gallery.facts.typical_length_s is None


def test_every_change_has_a_version_that_its_writer_knows(gallery):
    version = gallery.facts.version
    for change in (
        lambda: gallery.ingest(*batch(0)),
        lambda: gallery.upsert(FileState("/v/a.mp4", 1, 7), f"{0:064x}", 60.0),
        lambda: gallery.finish(f"{0:064x}", "all"),
        lambda: gallery.remove(["/v/a.mp4"]),
    ):
        change()
        with Gallery.open(gallery.folder) as reader:
            assert version < gallery.facts.version == reader.facts.version
        version = gallery.facts.version


def test_the_typical_length_is_that_of_the_clips_that_came_last(gallery):
    for number, length_s in enumerate((2.0, 5.0)):
        clips = [
            Clip("/v/a.mp4", f"{number}" * 64, start_s, start_s + length_s, 999.0)
            for start_s in range(100)
        ]
        gallery.ingest(clips, *rows_of(100))
        assert gallery.facts.typical_length_s == length_s


def test_files_are_those_of_one_content_in_the_order_they_came(gallery):
    for name, content in (("b", "a"), ("c", "c"), ("a", "a")):
        gallery.upsert(FileState(f"/v/{name}.mp4", ord(name), 7), content * 64, 9.0)
    b, c, a = (FileState(f"/v/{name}.mp4", ord(name), 7) for name in "bca")
    assert gallery.files("a" * 64) == gallery.files(1) == [b, a]
    assert gallery.files("c" * 64) == gallery.files(2) == [c]
    assert gallery.files() == [b, c, a]
    assert gallery.files("d" * 64) == gallery.files(3) == []


def test_a_file_that_was_never_looked_at_is_no_file_as_it_is_now(gallery):
    gallery.ingest([Clip("/v/a.mp4", "a" * 64, 1.0, 2.0, 9.0)], *rows_of(1))
    assert gallery.files("a" * 64) == [FileState("/v/a.mp4", None, None)]


def test_many_clips_come_once_each_in_order_of_their_rows(gallery):
    clips = [Clip("v.mp4", "a" * 64, i, i + 1, 1e6) for i in range(2001)]
    embeddings = unit(np.random.default_rng(0).standard_normal((2001, E)))
    gallery.ingest(clips, embeddings, np.ones((2001, F), np.float32))
    assert clips_of(gallery) == list(enumerate(clips))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_no_open_file_of_records_is_left_behind(tmp_path):
    folder = gallery_of(tmp_path / "g", 1)

    def open_files():
        links = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        return sum(str(folder / "gallery.sqlite") in link for link in links)

    before = open_files()
    gc.disable()
    try:
        kept = [Gallery.open(folder) for _ in range(3)]
        for one in kept:
            assert one.is_newest()
        while_open = open_files()
        for _ in range(5):
            kept[0].is_newest()
        assert open_files() == while_open > before
        for one in kept:
            one.close()
            with pytest.raises(GalleryError, match="is closed"):
                one.files()
        assert open_files() == before
    finally:
        gc.enable()


def test_a_reader_changes_nothing(gallery, tmp_path):
    gallery.ingest(*batch(0))
    with Gallery.open(tmp_path / "g") as reader:
        for act in (
            reader.compact,
            lambda: reader.remove([batch(0)[0][0].video]),
            lambda: reader.upsert(FileState("/v/a.mp4", 1, 1), "a" * 64, 9.0),
        ):
            with pytest.raises(GalleryError, match="is not open for writing"):
                act()
