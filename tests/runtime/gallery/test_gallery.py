"""Galleries on disk: storing, one writer, and damage or arguments that are refused."""

from pathlib import Path

import numpy as np
import pytest

from dgl_runtime.gallery.gallery import Clip, Gallery
from tests.helpers.made_galleries import (
    BATCH,
    MADE,
    E,
    F,
    assert_holds,
    batch,
    clips_of,
    gallery_of,
)


def test_what_was_appended_is_read_back(tmp_path):
    folder = gallery_of(tmp_path / "new" / "gallery", 3)
    assert_holds(folder, 3)
    with Gallery.open(str(folder)) as gallery:
        facts = gallery.facts
        assert (facts.bundle_id, facts.bundle_path) == ("bundle-a", "/models/a")
        assert (facts.embed_dim, facts.num_frames) == (E, F)
        assert (facts.num_clips, facts.num_rows, facts.num_videos) == (12, 12, 3)
        spans = [(0.1 * 3, 0.1 * 3 + 2.5), (np.float64(0.1 * 3), 0.1 * 3 + 2.5), (0.3, 2.8)]
        clips = [Clip("elsewhere.mp4", f"{2:064x}", *span, 60.0) for span in spans]
        assert gallery.missing(clips) == [2]  # 0.1 * 3 is not 0.3
        assert not gallery.embeddings().flags.writeable
        with pytest.raises(IndexError, match="no clip has row 12"):
            gallery.look_up([12])


def test_a_writer_sees_what_it_appends_and_a_reader_keeps_its_snapshot(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer, Gallery.open(folder) as reader:
        writer.ingest(*batch(1))
        assert writer.embeddings().shape == (2 * BATCH, E)
        assert writer.missing(batch(1)[0]) == []
        assert reader.missing(batch(1)[0]) == [0, 1, 2, 3]
        assert len(reader) == len(reader.embeddings()) == BATCH
        assert len(clips_of(reader)) == BATCH
        assert (reader.facts.version, writer.facts.version) == (1, 2)
        assert (reader.is_newest(), writer.is_newest()) == (False, True)


def test_numpy_times_and_odd_file_names_are_stored(tmp_path):
    clip = Clip("bad\udcff\nname.mp4", "sha", np.float32(0.1), np.float64(2), 3)
    _, embeddings, weights = batch(0, 1)
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.ingest([clip], embeddings, weights)
    with Gallery.open(tmp_path) as gallery:
        assert gallery.look_up([0])[0].clip == clip
        assert gallery.missing([Clip("v.mp4", "sha", np.float32(0.1), 2, 3)]) == []


def test_an_empty_gallery_and_an_empty_append_are_fine(tmp_path):
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.ingest([], np.empty((0, E), np.float32), np.empty((0, F), np.float32))
        for where in (None, "start_s > 1"):
            rows, similarity = gallery.search(batch(0)[1], 5, where)
            assert rows.shape == similarity.shape == (BATCH, 0)
            gallery.compact()


def test_clips_that_are_there_already_are_refused(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=r"clip 0.0 to 2.5 s .* would be in gallery .* twice"):
            gallery.ingest([*clips[:3], clips[0]], embeddings, weights)
        assert len(gallery) == 0
        gallery.ingest(clips, embeddings, weights)
        moved = [Clip("moved.mp4", *list(vars(clip).values())[1:]) for clip in clips]
        with pytest.raises(ValueError, match=r"twice. Ask missing"):
            gallery.ingest(moved, embeddings, weights)
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e * 1.01, r"embeddings\[\d\] has length 1.01, expected 1. Divide it"),
        (lambda e: e * 0, r"embeddings\[0\] has length 0, expected 1"),
        (lambda e: np.where(np.eye(BATCH, E) == 1, np.nan, e).astype("f4"), "hold a NaN"),
        (lambda e: np.where(np.eye(BATCH, E) == 1, np.inf, e).astype("f4"), "an infinity"),
        (lambda e: e.astype(np.float64), r"are float64 \[4, 8\], expected float32 \[4, 8\]"),
        (lambda e: e.astype(np.float16), r"are float16 \[4, 8\]"),
        (lambda e: e[:, :5], r"are float32 \[4, 5\], expected float32 \[4, 8\]"),
        (lambda e: e[:3], r"are float32 \[3, 8\], expected float32 \[4, 8\]"),
        (lambda e: e[0], r"are float32 \[8\], expected float32 \[4, 8\]"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, change, message):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=message):
            gallery.ingest(clips, change(embeddings), weights)
        assert len(gallery) == 0


def test_rounding_of_the_norm_is_allowed(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.ingest(clips, embeddings * np.float32(1.0009), weights)
        assert len(gallery) == len(clips)


def test_frame_weights_and_queries_that_do_not_fit_are_refused(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=r"frame_weights are float32 \[4, 2\], expected"):
            gallery.ingest(clips, embeddings, weights[:, :2])
        with pytest.raises(ValueError, match="frame_weights hold a NaN"):
            gallery.ingest(clips, embeddings, weights * np.float32(np.nan))
        with pytest.raises(
            ValueError, match=r"queries are float32 \[8\], expected float32 \[Q, 8\]"
        ):
            gallery.search(embeddings[0], 1)
        with pytest.raises(ValueError, match=r"queries\[\d\] has length 2"):
            gallery.search(embeddings * 2, 1)
        with pytest.raises(ValueError, match="top_k is 0, expected at least 1"):
            gallery.search(embeddings, 0)


@pytest.mark.parametrize("change", [{"bundle_id": ""}, {"embed_dim": 0}, {"num_frames": 0}])
def test_a_gallery_without_size_or_bundle_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="expected a text and two numbers above 0"):
        Gallery.create(tmp_path / "new", **{**MADE, **change})
    assert not (tmp_path / "new").exists()


def test_one_number_and_one_frame_a_clip_are_enough(tmp_path):
    with Gallery.create(tmp_path, **{**MADE, "embed_dim": 1, "num_frames": 1}) as gallery:
        assert len(gallery) == 0
        gallery.ingest(batch(0, 1)[0], np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    with Gallery.open(tmp_path) as gallery:
        facts = gallery.facts
        assert (len(gallery), facts.embed_dim, facts.num_frames) == (1, 1, 1)


@pytest.mark.parametrize(
    "values",
    [
        ("v", "s", 2.0, 2.0, 9.0),
        ("v", "s", -0.1, 2.0, 9.0),
        ("v", "s", float("nan"), 2.0, 9.0),
        ("v", "s", 0.0, float("inf"), 9.0),
        ("v", "s", 0.0, 2.0, 0.0),
        ("", "s", 0.0, 2.0, 9.0),
        ("v", "", 0.0, 2.0, 9.0),
        (Path("v"), "s", 0.0, 2.0, 9.0),
    ],
)
def test_a_clip_without_a_real_span_or_name_is_refused(values):
    with pytest.raises(ValueError, match=r"expected 0 <= start_s < end_s|as texts, got"):
        Clip(*values)
