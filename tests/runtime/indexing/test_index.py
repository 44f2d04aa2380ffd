import io
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime import Retriever
from dgl_runtime.decoding.decode_process import DecodeProcess
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import GalleryError, MediaError
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.indexing import sought
from dgl_runtime.indexing.index import default_jobs
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.video_files import FoundVideos
from tests.helpers.commands import run
from tests.helpers.indexed import add, assert_same, contents, names
from tests.helpers.odd_videos import damage, write_audio, write_video
from tests.helpers.specs import frame_spec


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Four videos; in windows of half a second each takes more than one batch."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(4):
        write_video(folder / f"{number}.mp4", 50 + number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(bundle, many, tmp_path_factory):
    gallery = tmp_path_factory.mktemp("undisturbed") / "gallery"
    assert add(bundle, gallery, many, window_s=0.5).broken == ()
    return contents(gallery)


# ---- what is told ----------------------------------------------------------------------------


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self):
        return True


def test_a_terminal_shows_how_far_it_is(bundle, tmp_path, monkeypatch):
    folder, gallery = tmp_path / "videos", tmp_path / "gallery"
    for number in range(2):
        write_video(folder / f"{number}.mp4", 20 + number)
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    add(bundle, gallery, folder, window_s=1.0)
    assert screen.getvalue() == ""
    write_video(folder / "2.mp4", 30)
    (folder / "3.mp4").touch()
    begun = time.perf_counter()
    add(bundle, gallery, folder, window_s=1.0, show_progress=True)
    took_s = time.perf_counter() - begun
    last = screen.getvalue().rpartition("\r")[2]
    assert " 4/4 " in last
    shown = re.search(r"clips=3, clips/s=(\d+\.\d), there=4, broken=1\]", last)
    assert float(shown[1]) > 3 / took_s - 0.1  # of a part of the run


@pytest.mark.parametrize(("cores", "jobs"), [(None, 1), (1, 1), (2, 1), (3, 2), (5, 4), (64, 4)])
def test_one_core_is_left_to_the_encoder_and_four_processes_are_enough(monkeypatch, cores, jobs):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert default_jobs() == jobs


def test_encoding_and_waiting_are_parts_of_a_run(bundle, tmp_path):
    path, begun = write_video(tmp_path / "a.mp4", 30), time.perf_counter()
    report = add(bundle, tmp_path / "gallery", path, window_s=0.5)
    parts = report.encoding_s, report.waiting_s
    assert min(parts) > 0
    assert sum(parts) < time.perf_counter() - begun


# ---- broken videos ---------------------------------------------------------------------------


def test_broken_videos_are_reported_and_the_others_indexed(bundle, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "c.mp4", "e.mp4"):
        write_video(folder / name, 20 + ord(name[0]) % 7)
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "d.mp4").touch()
    write_audio(folder / "f.mp4", "aac")
    report = add(bundle, tmp_path / "gallery", folder)
    assert (report.num_videos, report.clips_added, report.clips_present) == (6, 3, 0)
    broken_videos = sorted(report.broken, key=lambda one: one.video)
    assert [Path(broken.video).name for broken in broken_videos] == ["b.mp4", "d.mp4", "f.mp4"]
    reasons = ("is not a video or is damaged", "is empty", "has no picture stream, only: audio")
    for broken, reason in zip(broken_videos, reasons, strict=True):
        assert reason in broken.reason
        assert broken.reason.startswith(broken.video)
        assert "\n" not in broken.reason
    assert names(tmp_path / "gallery") == ["a.mp4", "c.mp4", "e.mp4"]


@pytest.mark.parametrize(
    ("name", "part", "kept", "reason"),
    [
        ("a.mp4", (0.4, 0.6), 28, "cannot be decoded at second"),
        ("a.mkv", (0.4, 0.6), 30, "cannot be decoded at second"),
        ("a.mkv", (0.5, 0.9), 15, "s of the 20.0 s it states: the rest is missing"),
    ],
)
def test_a_video_that_breaks_off_keeps_what_was_read_and_the_next_one_is_indexed(
    bundle, tmp_path, name, part, kept, reason
):
    folder = tmp_path / "videos"
    folder.mkdir()
    damage(write_video(folder / name, 200, codec="libx264", gop=10), *part)
    write_video(folder / "b.mkv", 20)
    report = add(bundle, tmp_path / "gallery", folder, window_s=0.5)
    found = names(tmp_path / "gallery")
    assert report.clips_added == len(found)
    assert found.count("b.mkv") == 4
    assert found.count(name) >= kept
    (broken,) = report.broken
    assert Path(broken.video).name == name
    assert reason in broken.reason
    again = add(bundle, tmp_path / "gallery", folder, window_s=0.5)
    assert (again.clips_added, again.clips_present, len(again.broken)) == (0, len(found), 1)


def test_a_video_that_lies_about_its_duration_is_reported_and_makes_no_million_windows(
    bundle, tmp_path
):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "lies.mkv", 10, pts=[*range(9), 100_000_000])
    write_video(folder / "true.mkv", 20)
    report = add(bundle, tmp_path / "gallery", folder, window_s=1.0)
    (broken,) = report.broken
    assert (
        "claims to last 10000000 s with 10 frames, which is 1000 windows of 1 s or more for each"
        in (broken.reason)
    )
    assert report.clips_added == 2
    again = add(bundle, tmp_path / "gallery", folder / "lies.mkv")  # as one clip it is harmless
    assert (again.clips_added, again.broken) == (1, ())


def test_a_video_that_vanishes_between_listing_and_reading_is_reported(
    bundle, tmp_path, monkeypatch
):
    gone, good = write_video(tmp_path / "gone.mp4"), write_video(tmp_path / "good.mp4", 12)
    monkeypatch.setattr(sought, "find_videos", lambda paths, exclude: FoundVideos(paths, {}))
    gone.unlink()
    report = add(bundle, tmp_path / "gallery", gone, good)
    assert report.clips_added == 1
    assert "does not exist" in report.broken[0].reason


def test_a_pipe_is_refused_at_once(bundle, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    report = add(bundle, tmp_path / "gallery", tmp_path / "pipe.mp4")
    assert "is a device or a pipe" in report.broken[0].reason


# ---- what is there already -------------------------------------------------------------------


def test_identical_content_is_indexed_once(bundle, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4", 20)
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    report = add(bundle, tmp_path / "gallery", folder, window_s=0.5, jobs=2)
    assert (report.num_videos, report.clips_added, report.clips_present) == (2, 4, 4)
    assert names(tmp_path / "gallery") in (["a.mp4"] * 4, ["b.mp4"] * 4)


def test_a_second_run_opens_no_video(bundle, many, tmp_path, monkeypatch):
    first = add(bundle, tmp_path / "gallery", many, window_s=0.5)
    monkeypatch.setattr(DecodeProcess, "start", None)
    again = add(bundle, tmp_path / "gallery", many, window_s=0.5)
    assert (again.clips_added, again.clips_present) == (0, first.clips_added)


def test_programs_in_the_current_folder_are_not_run(bundle, tmp_path):
    videos = tmp_path / "videos"
    write_video(videos / "a.mp4", 20)
    for name in ("av", "numpy", "queue", "json"):
        (videos / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    arguments = (str(bundle.resolve()), str(videos), "--gallery", str(tmp_path / "g"))
    # As the command does, which has its own folder on the path and not the current one.
    before = "sys.path[:] = [path for path in sys.path if path]"
    code, _, err = run("index", *arguments, before=before, cwd=videos)
    assert (code, err) == (0, "Skipped: 4 .py.\n")
    assert not (tmp_path / "run").exists()


def test_links_are_followed_and_a_loop_ends(bundle, tmp_path):
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_video(elsewhere / "far.mp4", 20)
    write_video(folder / "a" / "near.mp4", 22)
    (folder / "a" / "back").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again.mp4").symlink_to(folder / "a" / "near.mp4")
    (folder / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    report = add(bundle, tmp_path / "gallery", folder)
    assert (report.num_videos, report.broken) == (2, ())
    assert names(tmp_path / "gallery") == ["far.mp4", "near.mp4"]


def test_other_windows_of_a_video_are_added(bundle, tmp_path):
    video = write_video(tmp_path / "a.mp4", 20)
    assert add(bundle, tmp_path / "gallery", video, window_s=1.0).clips_added == 2
    report = add(bundle, tmp_path / "gallery", video, window_s=1.0, stride_s=0.5)
    assert (report.clips_added, report.clips_present) == (1, 2)


def test_rows_hold_the_embeddings_of_their_windows(bundle, many, tmp_path):
    add(bundle, tmp_path / "gallery", many, window_s=0.5)
    with Retriever(bundle, tmp_path / "gallery", threads=1) as retriever:
        gallery = retriever.gallery
        for row in (0, 7, 8, 17, len(gallery) - 1):
            found = gallery.look_up([row])[row]
            frames = np.stack(
                list(read_clips(Path(found.clip.video), [found.clip], frame_spec(4, 32)))
            )
            encoded = retriever.embed_clips(frames)
            np.testing.assert_allclose(gallery.embeddings()[row], encoded.embeddings[0], atol=1e-6)
            np.testing.assert_allclose(found.frame_weights, encoded.frame_weights[0], atol=1e-6)


# ---- interruptions ---------------------------------------------------------------------------


def fail_at(monkeypatch, number, error, owner=Encoder, name="embed_clips"):
    """Let the call of this number raise an error."""
    real, calls = getattr(owner, name), []

    def wrapper(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return real(*arguments)

    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GalleryError("disk full"), OSError("x")])
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("place", ["embed_clips", "ingest"])
def test_an_interrupted_and_resumed_gallery_equals_an_undisturbed_one(
    bundle, many, undisturbed, tmp_path, monkeypatch, number, error, place
):
    gallery = tmp_path / "gallery"
    owner = Encoder if place == "embed_clips" else Gallery
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        fail_at(patch, number, error, owner, place)
        with pytest.raises(type(error)):
            add(bundle, gallery, many, window_s=0.5)
    assert threading.active_count() == threads  # the one that decodes has ended
    with Gallery.open(gallery) as opened:
        committed = len(opened)
        assert np.isfinite(opened.embeddings()).all()
    assert (committed > 0) == (number > 1)
    report = add(bundle, gallery, many, window_s=0.5)
    assert report.clips_present == committed
    assert_same(contents(gallery), undisturbed)


def test_an_error_of_the_thread_that_looks_stops_the_run(bundle, many, tmp_path, monkeypatch):
    fail_at(monkeypatch, 2, ZeroDivisionError("a bug"), Gallery, "upsert")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        add(bundle, tmp_path / "gallery", many)
    add(bundle, tmp_path / "gallery", many)
    assert names(tmp_path / "gallery") == [f"{number}.mp4" for number in range(4)]


def test_a_gallery_killed_while_it_was_made_can_be_used(bundle, many, undisturbed, tmp_path):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for name in ("writer.lock", "embeddings.0.f32", "gallery.sqlite.tmp"):
        (gallery / name).touch()
    add(bundle, gallery, many, window_s=0.5)
    assert_same(contents(gallery), undisturbed)


# ---- galleries that do not fit ---------------------------------------------------------------


def test_a_gallery_of_another_bundle_is_refused_and_kept(bundle, other_bundle, many, tmp_path):
    add(bundle, tmp_path / "gallery", many / "0.mp4")
    before = contents(tmp_path / "gallery")
    with pytest.raises(GalleryError, match=r"Use that bundle, or index into a new folder\."):
        add(other_bundle, tmp_path / "gallery", many)
    assert_same(contents(tmp_path / "gallery"), before)


def test_a_folder_with_other_things_is_no_gallery(bundle, many, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(GalleryError, match=r"holds notes\.txt, so no gallery is made there"):
        add(bundle, tmp_path, many)
    with pytest.raises(GalleryError, match="cannot be made"):
        add(bundle, tmp_path / "notes.txt", many)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_path_without_videos_makes_no_gallery(bundle, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "readme.txt").write_text("none here")
    with pytest.raises(MediaError, match="No video found in"):
        add(bundle, tmp_path / "gallery", tmp_path / "videos")
    assert not (tmp_path / "gallery").exists()
