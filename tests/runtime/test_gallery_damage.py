"""Galleries with one writer, one bundle, and no damage unnoticed."""

import json
from unittest import mock

import pytest
from made_galleries import DATA, MADE, PowerCut, assert_holds, batch, gallery_of, start_writer

from dgl_runtime import gallery_files
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import Gallery


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        with pytest.raises(GalleryError, match=r"has a writer already.*open it for reading"):
            Gallery.open(folder, writable=True)
        with start_writer(folder, 5) as other:
            assert other.stdout.read() == b""
        assert other.returncode == 1
        writer.append(*batch(1))
    assert_holds(folder, 2)


def test_a_writer_that_waited_for_the_lock_sees_what_was_appended_meanwhile(tmp_path):
    folder = gallery_of(tmp_path, 1)

    def lock_later(folder, real=gallery_files.writer_lock):
        with mock.patch.object(gallery_files, "writer_lock", real):
            with Gallery.open(folder, writable=True) as other:
                other.append(*batch(1))
        return real(folder)

    with mock.patch.object(gallery_files, "writer_lock", lock_later):
        Gallery.open(folder, writable=True).close()
    assert_holds(folder, 2)


def test_a_failed_open_does_not_keep_the_lock(tmp_path):
    folder = gallery_of(tmp_path, 1)
    good = (folder / "clips.jsonl").read_bytes()
    (folder / "clips.jsonl").write_bytes(b"{}\n")
    with pytest.raises(GalleryError, match=r"holds 1 whole lines, gallery.json says 4"):
        Gallery.open(folder, writable=True)
    (folder / "clips.jsonl").write_bytes(good)
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
    (folder / "gallery.json").unlink()
    with pytest.raises(GalleryError, match=r"holds clips.jsonl"):
        Gallery.create(folder, **MADE)
    with pytest.raises(GalleryError, match="cannot be made"):
        Gallery.create(tmp_path / "other" / "notes.txt", **MADE)


def test_a_creation_that_was_killed_can_be_repeated(tmp_path):
    with (
        mock.patch("dgl_runtime.gallery_files.write_header", side_effect=PowerCut),
        pytest.raises(PowerCut),
    ):
        Gallery.create(tmp_path, **MADE)
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path)
    assert_holds(gallery_of(tmp_path, 1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema_version 2, this build reads 1. Index the videos again"),
        ({"num_clips": -1}, "a size is out of range"),
        ({"num_clips": "4"}, "is damaged: expected schema_version, bundle_id,"),
        ({"num_clips": 4.0}, "is damaged: expected"),
        ({"embed_dim": 0}, "a size is out of range"),
        ({"colour": "red"}, "is damaged: expected"),
        ({"num_clips": 5}, r"clips.jsonl is damaged: it holds 4 whole lines, gallery.json says 5"),
        ({"embed_dim": 9}, r"embeddings.f32 is damaged: it holds 128 bytes, its clips need 144"),
        ({"num_frames": 9}, r"frame_weights.f32 is damaged: it holds 48 bytes"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, message):
    folder = gallery_of(tmp_path, 1)
    header = {**json.loads((folder / "gallery.json").read_text()), **change}
    (folder / "gallery.json").write_text(json.dumps(header))
    with pytest.raises(GalleryError, match=message) as caught:
        Gallery.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"3", b"{}", b"\xff\xfe"])
def test_a_header_that_is_not_json_of_ours_is_refused(tmp_path, text):
    folder = gallery_of(tmp_path, 1)
    (folder / "gallery.json").write_bytes(text)
    with pytest.raises(GalleryError, match=r"gallery.json is damaged: it is not the JSON"):
        Gallery.open(folder)


@pytest.mark.parametrize(
    "line", [b"{}", b"no json", b"[1]", b"3", b"\xff", b'{"video": "a", "start_s": "x"}']
)
def test_a_clip_row_that_is_none_is_refused_when_it_is_read_and_by_writers(tmp_path, line):
    folder = gallery_of(tmp_path, 1)
    rows = (folder / "clips.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "clips.jsonl").write_bytes(b"".join([*rows[:2], line + b"\n", *rows[2:]]))
    with Gallery.open(folder) as reader, Gallery.open(folder, writable=True) as writer:
        assert [reader.clips[row].start_s for row in (0, 1)] == [0.0, 0.1]
        for read in (
            lambda: reader.clips[2],
            lambda: list(reader.clips),
            lambda: writer.has("sha", 0.0, 1.0),
            lambda: writer.append(*batch(1)),
        ):
            with pytest.raises(GalleryError, match=r"clips.jsonl is damaged: line 3 is no clip"):
                read()


@pytest.mark.parametrize("name", DATA)
def test_a_missing_file_is_named(tmp_path, name):
    folder = gallery_of(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(GalleryError, match=f"cannot be opened: .*No such file.*{name}"):
        Gallery.open(folder)


def test_a_folder_that_is_no_gallery_is_refused_and_left_alone(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        for writable in (False, True):
            with pytest.raises(GalleryError, match=r"is not a gallery: it has no gallery.json"):
                Gallery.open(folder, writable=writable)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_append_and_a_closed_gallery_cannot_search(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder) as reader:
        for act in (lambda: reader.append(*batch(1)), reader.build_approximate_index):
            with pytest.raises(GalleryError, match=r"is not open for writing. Open it with"):
                act()
    reader.close()
    with pytest.raises(GalleryError, match=r"is closed. Open it again"):
        reader.search(batch(0)[1], 1)


def test_a_gallery_replaced_behind_its_writer_is_not_written(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        header = (folder / "gallery.json").read_text()
        (folder / "gallery.json").write_text(header.replace("bundle-a", "bundle-b"))
        with pytest.raises(GalleryError, match="was changed behind this writer"):
            writer.append(*batch(1))
