"""Galleries with one writer, one bundle, and no damage unnoticed."""

import sqlite3
from contextlib import closing
from unittest import mock

import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import gallery as gallery_module
from dgl_runtime.gallery.clips import FileState
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.local_vector_store import LocalVectors
from tests.helpers.made_galleries import (
    MADE,
    VECTORS,
    PowerCut,
    assert_holds,
    batch,
    clips_of,
    gallery_of,
    start_writer,
)


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        with pytest.raises(GalleryError, match=r"has a writer already.*open it for reading"):
            Gallery.open(folder, writable=True)
        with start_writer(folder, 5) as other:
            assert other.stdout.read() == b""
        assert other.returncode == 1
        writer.ingest(*batch(1))
    assert_holds(folder, 2)


def test_a_writer_that_waited_for_the_lock_sees_what_was_appended_meanwhile(tmp_path):
    folder = gallery_of(tmp_path, 1)

    def lock_later(folder, real=gallery_module.writer_lock):
        with mock.patch.object(gallery_module, "writer_lock", real):
            with Gallery.open(folder, writable=True) as other:
                other.ingest(*batch(1))
        return real(folder)

    with mock.patch.object(gallery_module, "writer_lock", lock_later):
        Gallery.open(folder, writable=True).close()
    assert_holds(folder, 2)


def test_a_gallery_that_somebody_else_makes_meanwhile_is_not_made_again(tmp_path):
    def lock_later(folder, real=gallery_module.writer_lock):
        with mock.patch.object(gallery_module, "writer_lock", real):
            gallery_of(folder, 1)
        return real(folder)

    with (
        mock.patch.object(gallery_module, "writer_lock", lock_later),
        pytest.raises(GalleryError, match=r"is a gallery already\. Open it"),
    ):
        Gallery.create(tmp_path, **MADE)
    assert_holds(tmp_path, 1)


def test_a_reader_that_meets_a_compaction_looks_again(tmp_path):
    folder, met = gallery_of(tmp_path, 2), []
    with Gallery.open(folder, writable=True) as writer:
        writer.remove([batch(0)[0][0].video])

        def store(folder):
            if not met:  # between a look at the records and one at the vectors
                met.append(writer.compact())
            return LocalVectors(folder)

        with Gallery.open(folder, store=store) as reader:
            assert [clip for _, clip in clips_of(reader)] == batch(1)[0]


def test_a_full_disk_under_the_records_says_what_is_kept(tmp_path):
    with Gallery.open(gallery_of(tmp_path, 1), writable=True) as gallery:
        with gallery._records.reading() as connection:
            ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(
            GalleryError,
            match=r"could not take a change: database or disk is full\. It keeps the 4 clips it had",
        ):
            gallery.ingest(*batch(1, 2000))
        assert len(gallery) == len(gallery.embeddings()) == 4
        assert (tmp_path / VECTORS[0]).stat().st_size == 128  # the room is given back
        gallery.ingest(*batch(2))
    with Gallery.open(tmp_path) as reader:
        assert [clip for _, clip in clips_of(reader)] == [*batch(0)[0], *batch(2)[0]]


def test_a_failed_open_does_not_keep_the_lock(tmp_path):
    folder = gallery_of(tmp_path, 1)
    good = (folder / VECTORS[0]).read_bytes()
    (folder / VECTORS[0]).write_bytes(good[:-1])
    with pytest.raises(GalleryError, match=r"it holds 127 bytes, its clips need 128"):
        Gallery.open(folder, writable=True)
    (folder / VECTORS[0]).write_bytes(good)
    Gallery.open(folder, writable=True).close()


def test_another_bundle_is_refused(tmp_path):
    folder = gallery_of(tmp_path, 1)
    message = "holds embeddings of bundle bundle-a, not of bundle-b. Use that bundle, or index into"
    with pytest.raises(GalleryError, match=message):
        Gallery.open(folder, bundle_id="bundle-b")


def test_a_folder_in_use_is_not_made_a_gallery(tmp_path):
    folder = gallery_of(tmp_path / "gallery", 1)
    with pytest.raises(GalleryError, match=r"is a gallery already. Open it"):
        Gallery.create(folder, **MADE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(GalleryError, match=r"holds notes.txt, so no gallery is made there"):
        Gallery.create(tmp_path / "other", **MADE)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    (folder / "gallery.sqlite").unlink()
    with pytest.raises(GalleryError, match=r"holds embeddings.0.f32, so no gallery is made there"):
        Gallery.create(folder, **MADE)
    with pytest.raises(GalleryError, match="cannot be made"):
        Gallery.create(tmp_path / "other" / "notes.txt", **MADE)


def test_a_creation_that_was_killed_can_be_repeated(tmp_path):
    with (
        mock.patch("dgl_runtime.gallery.records.Records.create", side_effect=PowerCut),
        pytest.raises(PowerCut),
    ):
        Gallery.create(tmp_path, **MADE)
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path)
    assert_holds(gallery_of(tmp_path, 1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "PRAGMA user_version = 3",
            "has schema version 3, this build reads 2. Index the videos again",
        ),
        ("PRAGMA application_id = 7", "is damaged: it is not the SQLite file of a gallery"),
        ("UPDATE header SET num_rows = -1", "is damaged: its header says"),
        ("UPDATE header SET num_rows = 'four'", "is damaged: its header says"),
        ("UPDATE header SET embed_dim = 0", "is damaged: its header says"),
        ("UPDATE header SET bundle_path = 3", "is damaged: its header says"),
        ("DELETE FROM header", "is damaged: its header has 0 rows, expected 1"),
        ("DROP TABLE header", "cannot be read or written: no such table: header"),
        ("UPDATE header SET num_rows = 5", r"embeddings.0.f32 is damaged: it holds 128 bytes"),
        ("UPDATE header SET embed_dim = 9", r"embeddings.0.f32 is damaged: it holds 128 bytes"),
        ("UPDATE header SET num_frames = 9", r"frame_weights.0.f32 is damaged: it holds 48 bytes"),
        ("UPDATE header SET generation = 1", "cannot be opened: .*No such file.*embeddings.1.f32"),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = gallery_of(tmp_path, 1)
    with closing(sqlite3.connect(folder / "gallery.sqlite")) as connection, connection:
        connection.execute(change)
    with pytest.raises(GalleryError, match=message) as caught:
        Gallery.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff" * 5000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_not_sqlite_is_refused(tmp_path, data):
    folder = gallery_of(tmp_path, 1)
    (folder / "gallery.sqlite").write_bytes(data)
    for writable in (False, True):
        with pytest.raises(GalleryError, match=r"gallery.sqlite is damaged|cannot be read"):
            Gallery.open(folder, writable=writable)


@pytest.mark.parametrize("value", ["-1.0", "9.0", "'x'"])
def test_a_record_that_is_no_clip_is_refused_when_it_is_read(tmp_path, value):
    folder = gallery_of(tmp_path, 1)
    with closing(sqlite3.connect(folder / "gallery.sqlite")) as connection, connection:
        connection.execute(f"UPDATE clips SET start_s = {value} WHERE row = 2")
    with Gallery.open(folder) as reader:
        assert [found.clip.start_s for found in reader.look_up([0, 1]).values()] == [0.0, 0.1]
        with pytest.raises(GalleryError, match=r"gallery.sqlite is damaged: row 2 is no clip"):
            reader.look_up([2])


@pytest.mark.parametrize("name", VECTORS)
def test_a_missing_file_is_named(tmp_path, name):
    folder = gallery_of(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(GalleryError, match=f"cannot be opened: .*No such file.*{name}"):
        Gallery.open(folder)


def test_a_folder_that_is_no_gallery_is_refused_and_left_alone(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        for writable in (False, True):
            with pytest.raises(GalleryError, match=r"is not a gallery: it has no gallery.sqlite"):
                Gallery.open(folder, writable=writable)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_changes_nothing_and_a_closed_gallery_cannot_search(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder) as reader:
        for act in (
            lambda: reader.ingest(*batch(1)),
            lambda: reader.upsert(FileState("/v/a.mp4", 1, 1), "a" * 64, 9.0),
            lambda: reader.finish("a" * 64, "all"),
            lambda: reader.remove(["/v/a.mp4"]),
            lambda: reader.upsert_metadata(tmp_path / "no.csv", print),
            reader.compact,
        ):
            with pytest.raises(GalleryError, match=r"is not open for writing. Open it with"):
                act()
    reader.close()
    with pytest.raises(GalleryError, match=r"is closed. Open it again"):
        reader.search(batch(0)[1], 1)


def test_a_gallery_changed_behind_its_writer_is_not_written(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        with closing(sqlite3.connect(folder / "gallery.sqlite")) as connection, connection:
            connection.execute("UPDATE header SET num_rows = 3")
        with pytest.raises(GalleryError, match="was changed behind this writer: it has 3 rows"):
            writer.ingest(*batch(1))
