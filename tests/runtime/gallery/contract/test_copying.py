"""A copy of a gallery is the same, from any kind to any other."""

import numpy as np
import pytest

from dgl_runtime.commands.bundle import bundle as dgl_bundle
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import copying
from dgl_runtime.gallery.address import open_gallery, open_or_create
from dgl_runtime.gallery.clips import FileState
from dgl_runtime.gallery.copying import copy_gallery
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import invoke
from tests.helpers.made_galleries import BATCH, MADE, batch

NUM_BATCHES = 7


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(copying, "_VIDEOS", 2)
    monkeypatch.setattr(copying, "_CLIPS", 3)


@pytest.fixture
def source(tmp_path):
    """Copies of files, a video without clips, one not through, metadata, dropped clips."""
    with Gallery.create(tmp_path / "source", **MADE) as gallery:
        for number in range(NUM_BATCHES):
            clips = batch(number)[0]
            gallery.upsert(FileState(clips[0].video, 5, number), clips[0].content_sha256, 60.0)
            gallery.ingest(*batch(number))
            if number != 3:
                gallery.finish(clips[0].content_sha256, "whole")
        gallery.finish(f"{1:064x}", "windows 5s")
        gallery.upsert(FileState("/a copy.mp4", None, None), f"{1:064x}", 60.0)
        gallery.upsert(FileState("/caf\udce9.mp4", 9, 9), "f" * 64, 2.5)
        gallery.remove([batch(2)[0][0].video])
        table = tmp_path / "about.csv"
        table.write_text("video,Title,year\n/a copy.mp4,Lake,1999\n/caf.mp4,,2000\n", "utf-8")
        gallery.upsert_metadata(table, print)
    return tmp_path / "source"


def seen(place):
    """All that a gallery knows, without its numbers."""
    with open_gallery(place) as gallery:
        videos = {
            video.content_sha256: (
                video.duration_s,
                set(video.files),
                set(video.segmentations),
                dict(video.metadata),
                len(video.rows),
            )
            for video in gallery.videos(-1, 100)
        }
        rows = [row for video in gallery.videos(-1, 100) for row in video.rows]
        clips = {
            found.clip: (found.frame_weights.tolist(), gallery.embeddings(np.array([row])).tolist())
            for row, found in gallery.look_up(rows).items()
        }
    return videos, clips


def copy(source, target):
    with open_gallery(source) as old, open_or_create(target, **MADE) as new:
        return copy_gallery(old, new)


def test_there_and_back_it_is_the_same(source, place, tmp_path):
    copied = copy(source, place)
    count = (NUM_BATCHES - 1) * BATCH
    assert (copied.num_videos, copied.num_clips, copied.clips_added) == (NUM_BATCHES, count, count)
    assert copied.agreement == 1.0
    copy(place, tmp_path / "back")
    assert seen(source)[0]["f" * 64][:3] == (2.5, {FileState("/caf\udce9.mp4", 9, 9)}, set())
    assert seen(source)[0][f"{1:064x}"][3] == {"Title": "Lake", "year": 1999}
    assert seen(source) == seen(place) == seen(tmp_path / "back")


def test_a_copy_that_was_stopped_goes_on(source, place, monkeypatch):
    with open_gallery(source) as old, open_or_create(place, **MADE) as new:
        ingest, batches = new.ingest, []

        def stopped(*given):
            if len(batches) == 3:
                raise KeyboardInterrupt
            batches.append(given)
            ingest(*given)

        monkeypatch.setattr(new, "ingest", stopped)
        with pytest.raises(KeyboardInterrupt):
            copy_gallery(old, new)
    there = sum(len(clips) for clips, _, _ in batches)
    assert copy(source, place).clips_added == (NUM_BATCHES - 1) * BATCH - there
    assert copy(source, place).clips_added == 0
    assert seen(place) == seen(source)


def test_a_target_that_held_others_is_told(source, place):
    with open_or_create(place, **MADE) as other:
        other.ingest(*batch(50))
    with pytest.raises(GalleryError, match=r"holds 8 videos, expected the 7 of .* copy into a new"):
        copy(source, place)


@pytest.mark.parametrize("size", [6, 5])  # 5: of another content, and yet it looks the same
def test_what_the_target_has_seen_since_is_left(source, place, size):
    copy(source, place)
    path = batch(4)[0][0].video
    with open_gallery(place, writable=True) as target:
        target.upsert(FileState(path, size, 4), "e" * 64, 9.0)
        before = len(target)
    with pytest.raises(GalleryError, match=r"holds 20 clips, expected the 24 of "):
        copy(source, place)
    with open_gallery(place) as target:
        assert [file.path for file in target.files("e" * 64)] == [path]
        assert len(target) == before


def test_a_target_that_finds_others_is_told(source, tmp_path, monkeypatch):
    search = Gallery.search

    def astray(self, queries, *rest):
        return search(self, queries if self.folder == source else -queries, *rest)

    monkeypatch.setattr(Gallery, "search", astray)
    with pytest.raises(GalleryError, match=r"finds \d+% of what .* finds, expected 95% or more"):
        copy(source, tmp_path / "target")


def test_the_command_says_what_it_did(source, place):
    said = invoke(dgl_bundle, "gallery", "copy", source, place)
    assert said == (
        f"{(NUM_BATCHES - 1) * BATCH} clips copied; {place} holds 24 clips of 7 videos, and gives 100.0% of "
        f"the hits of {source}.\n"
    )
    assert invoke(dgl_bundle, "gallery", "copy", source, place).startswith("0 clips copied")
