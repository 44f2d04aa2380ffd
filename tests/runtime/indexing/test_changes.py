"""Videos that are renamed, changed, copied or deleted between two runs of indexing, or during one."""

import os
import shutil
import time

import pytest

from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import MediaError
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import as_a_user, run
from tests.helpers.indexed import add, assert_same, contents, names
from tests.helpers.odd_videos import write_video


def test_a_renamed_video_is_found_under_its_new_name_and_a_changed_one_is_indexed_anew(
    bundle, tmp_path
):
    video, gallery = write_video(tmp_path / "a.mp4", 20), tmp_path / "gallery"
    add(bundle, gallery, video, window_s=1.0)
    before = contents(gallery)
    moved = video.rename(tmp_path / "b.mp4")
    assert add(bundle, gallery, moved, window_s=1.0).clips_added == 0
    assert names(gallery) == ["b.mp4", "b.mp4"]
    assert [rows[0].tolist() for rows in contents(gallery).values()] == [
        rows[0].tolist() for rows in before.values()
    ]
    write_video(moved, 31)
    assert add(bundle, gallery, moved, window_s=1.0).clips_added == 3
    assert names(gallery) == ["b.mp4"] * 3
    assert {clip.duration_s for clip in contents(gallery)} == {3.1}


def test_files_that_swap_their_contents_are_told_apart(bundle, tmp_path):
    """As cameras do that write to cam.mp4 and move it to cam.1.mp4."""
    gallery = tmp_path / "gallery"
    old, new = (write_video(tmp_path / name, 20 + len(name)) for name in ("cam.mp4", "other.mp4"))
    add(bundle, gallery, old, new)
    contents_before = {clip.video: clip.content_sha256 for clip in contents(gallery)}
    old.rename(tmp_path / "between")
    new.rename(old)
    (tmp_path / "between").rename(new)
    add(bundle, gallery, old, new, jobs=2)
    found = {clip.video: clip.content_sha256 for clip in contents(gallery)}
    assert found == {str(old): contents_before[str(new)], str(new): contents_before[str(old)]}


def test_a_changed_video_that_is_broken_now_loses_its_clips(bundle, tmp_path):
    video, gallery = write_video(tmp_path / "a.mp4", 20), tmp_path / "gallery"
    write_video(tmp_path / "b.mp4", 22)
    add(bundle, gallery, tmp_path)
    video.write_bytes(b"overwritten")
    report = add(bundle, gallery, tmp_path)
    assert "is not a video or is damaged" in report.broken[0].reason
    assert names(gallery) == ["b.mp4"]


def test_a_video_that_is_gone_stays_until_it_is_pruned(bundle, tmp_path):
    folder, gallery = tmp_path / "videos", tmp_path / "gallery"
    (folder / "inside").mkdir(parents=True)
    for number in range(4):
        write_video(folder / "inside" / f"{number}.mp4", 20 + number)
    write_video(tmp_path / "elsewhere.mp4", 30)
    add(bundle, gallery, folder, tmp_path / "elsewhere.mp4")
    (tmp_path / "elsewhere.mp4").unlink()  # not below the folder
    for number in (1, 2, 3):
        (folder / "inside" / f"{number}.mp4").unlink()
    assert add(bundle, gallery, folder).files_dropped == 0
    assert len(names(gallery)) == 5
    before = contents(gallery)
    assert add(bundle, gallery, folder, prune=True).files_dropped == 3
    assert names(gallery) == ["0.mp4", "elsewhere.mp4"]
    after = contents(gallery)
    assert_same(after, {clip: before[clip] for clip in after})
    with Gallery.open(gallery) as opened:
        assert opened.embeddings().shape[0] == 2  # the room was taken back


def test_a_video_that_changes_while_it_is_read_is_reported_and_left_out(
    bundle, tmp_path, monkeypatch
):
    video, gallery = write_video(tmp_path / "a.mp4", 20), tmp_path / "gallery"
    write_video(tmp_path / "b.mp4", 22)
    real = Encoder.embed_clips

    def grow(self, frames):
        with video.open("ab") as file:
            file.write(b"more")
        return real(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "embed_clips", grow)
        report = add(bundle, gallery, video, tmp_path / "b.mp4")
    (broken,) = report.broken
    assert (
        f"{video} changed while it was read. Index it again when it is complete." == broken.reason
    )
    assert names(gallery) == ["b.mp4"]
    assert add(bundle, gallery, tmp_path).clips_added == 1


def test_copies_that_are_read_side_by_side_are_encoded_once(bundle, tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "0.mp4", 100)
    for number in range(1, 6):
        shutil.copy(folder / "0.mp4", folder / f"{number}.mp4")
    real = Encoder.embed_clips
    monkeypatch.setattr(
        Encoder, "embed_clips", lambda self, frames: time.sleep(0.1) or real(self, frames)
    )
    report = add(bundle, tmp_path / "gallery", folder, window_s=0.5, jobs=3)
    assert (report.clips_added, report.clips_present, report.broken) == (20, 100, ())
    assert len(contents(tmp_path / "gallery")) == 20


def test_what_may_not_be_looked_at_is_not_taken_for_gone(bundle, tmp_path):
    videos, gallery = tmp_path / "videos", tmp_path / "g"
    (videos / "sub").mkdir(parents=True)
    for number, path in enumerate((videos / "a.mp4", videos / "sub" / "b.mp4", videos / "c.mp4")):
        write_video(path, 20 + number)
    assert add(bundle, gallery, videos).clips_added == 3
    (videos / "c.mp4").unlink()
    (videos / "sub").chmod(0)
    arguments = ("index", str(bundle), str(videos), "--gallery", str(gallery), "--prune")
    code, out, err = run(*arguments, prefix=as_a_user())
    (videos / "sub").chmod(0o755)
    assert (code, err) == (0, "")
    assert "1 removed" in out
    assert names(gallery) == ["a.mp4", "b.mp4"]


def test_the_last_video_of_a_folder_can_be_pruned(bundle, tmp_path):
    video, gallery = write_video(tmp_path / "v" / "a.mp4", 20), tmp_path / "gallery"
    assert add(bundle, gallery, tmp_path / "v").clips_added == 1
    video.unlink()
    with pytest.raises(MediaError, match="No video found"):
        add(bundle, gallery, tmp_path / "v")
    assert add(bundle, gallery, tmp_path / "v", prune=True).files_dropped == 1
    assert names(gallery) == []


def test_a_copy_takes_the_place_of_a_file_that_is_gone(bundle, tmp_path):
    gallery = tmp_path / "gallery"
    first = write_video(tmp_path / "v" / "a.mp4", 20)
    shutil.copy(first, tmp_path / "v" / "b.mp4")
    add(bundle, gallery, tmp_path / "v")
    assert names(gallery) == ["a.mp4"]
    first.unlink()
    add(bundle, gallery, tmp_path / "v")
    assert names(gallery) == ["b.mp4"]


@pytest.mark.parametrize("new", ["size", "time", "link", "link in a linked folder"])
def test_a_file_in_whose_place_another_is_has_the_clips_of_that_one(bundle, tmp_path, new):
    """Of another time, of another size, or a link to a file of equal size and time."""
    video, gallery = write_video(tmp_path / "v" / "a.mp4", 20), tmp_path / "gallery"
    other = write_video(tmp_path / "other.mp4", 30)
    size = max(video.stat().st_size, other.stat().st_size) + 8
    for path in (video, other):
        free = size - path.stat().st_size  # a box that says nothing
        path.write_bytes(path.read_bytes() + free.to_bytes(4) + b"free" + bytes(free - 8))
        os.utime(path, ns=(10**18, 10**18))
    folder = tmp_path / "v"
    if new == "link in a linked folder":
        folder = tmp_path / "w"
        folder.symlink_to("v")
    add(bundle, gallery, folder)
    if new.startswith("link"):
        video.unlink()
        video.symlink_to(other)
    else:
        if new == "size":
            other.write_bytes(other.read_bytes() + (8).to_bytes(4) + b"free")
        os.utime(other, ns=(10**18, 10**18 + (new == "time")))
        other.rename(video)
    add(bundle, gallery, folder)
    assert [(clip.video, clip.duration_s) for clip in contents(gallery)] == [
        (str(video.resolve()), 3.0)
    ]


def test_a_video_that_was_moved_and_linked_to_keeps_its_clips(bundle, tmp_path):
    video, gallery = write_video(tmp_path / "v" / "a.mp4", 20), tmp_path / "gallery"
    add(bundle, gallery, tmp_path / "v")
    video.symlink_to(video.rename(tmp_path / "b.mp4"))
    for _ in range(2):
        report = add(bundle, gallery, tmp_path / "v")
        assert (report.clips_added, report.clips_present) == (0, 1)
        assert names(gallery) == ["b.mp4"]


def test_a_link_in_a_file_s_place_can_be_pruned(bundle, tmp_path):
    """Also one that leads nowhere, or to a file that is found under its own name."""
    folder, gallery = tmp_path / "v", tmp_path / "gallery"
    for number, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", 20 + number)
    add(bundle, gallery, folder)
    for name, target in (("b", "nowhere"), ("c", "a.mp4")):
        (folder / f"{name}.mp4").unlink()
        (folder / f"{name}.mp4").symlink_to(folder / target)
    assert add(bundle, gallery, folder, prune=True).files_dropped == 2
    assert names(gallery) == ["a.mp4"]
