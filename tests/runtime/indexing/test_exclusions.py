"""What dgl-index passes over below a folder: told, and dropped by --prune if it was indexed before."""

import signal
import time

import pytest
from click.testing import CliRunner

from dgl_runtime.commands.index import index
from tests.helpers.commands import run, start
from tests.helpers.indexed import add, names
from tests.helpers.odd_videos import write_video


def write_library(folder):
    for number, name in enumerate(("a", "raw/b", "#recycle/c", "@eaDir/a.mp4/d", "sub/e")):
        write_video(folder / f"{name}.mp4", 20 + number)
    (folder / "notes.txt").touch()
    (folder / "code.ts").write_text("export const one = 1;\n")
    return folder


def test_what_is_passed_over_is_told_on_one_line(bundle, tmp_path):
    videos, gallery = write_library(tmp_path / "v"), tmp_path / "g"
    arguments = ("index", str(bundle), str(videos), "--gallery", str(gallery))
    code, out, err = run(*arguments, "--exclude", "raw", "--exclude", "*/e.mp4")
    assert (code, err) == (0, "Skipped: 1 #recycle/, 1 .ts, 1 .txt, 1 @eaDir/.\n")
    assert out.startswith("1 videos: 1 clips added, 0 already indexed, 0 videos broken.")
    assert names(gallery) == ["a.mp4"]
    code, out, err = run(*arguments, "--exclude", "raw/")  # what is excluded no more comes
    assert (code, names(gallery)) == (0, ["a.mp4", "e.mp4"])
    for pattern in ("", "/", "./"):
        result = CliRunner().invoke(index, [*arguments[1:], "--exclude", pattern])
        assert result.exit_code == 2
        assert f"{pattern!r} names nothing; expected one such as *.lrv or raw/." in result.stderr


def test_prune_drops_what_is_excluded_now_and_nothing_else_does(bundle, tmp_path):
    videos, gallery = write_library(tmp_path / "v"), tmp_path / "g"
    bin_ = videos / "#recycle"
    assert add(bundle, gallery, videos, bin_).clips_added == 4  # the bin was named
    assert add(bundle, gallery, videos, exclude=["raw"]).files_dropped == 0
    assert names(gallery) == ["a.mp4", "b.mp4", "c.mp4", "e.mp4"]
    assert add(bundle, gallery, videos, bin_, prune=True).files_dropped == 0
    # A file named itself stays, whatever the pattern.
    report = add(
        bundle, gallery, videos, videos / "raw/b.mp4", exclude=["raw", "a.mp4"], prune=True
    )
    assert (report.num_videos, report.files_dropped) == (2, 2)
    assert names(gallery) == ["b.mp4", "e.mp4"]
    assert add(bundle, gallery, videos / "sub", exclude=["*"], prune=True).files_dropped == 1
    assert names(gallery) == ["b.mp4"]  # it lies elsewhere
    assert (videos / "sub" / "e.mp4").exists()


def test_prune_keeps_what_a_link_leads_to_in_a_folder_that_is_passed_over(bundle, tmp_path):
    videos, gallery = write_library(tmp_path / "v"), tmp_path / "g"
    (videos / "link.mp4").symlink_to(videos / "#recycle" / "c.mp4")
    for added in (4, 0):
        report = add(bundle, gallery, videos, prune=True)
        assert (report.clips_added, report.files_dropped) == (added, 0)


def test_a_watched_folder_passes_over_the_same(bundle, tmp_path):
    pytest.importorskip("watchfiles")
    videos, gallery = write_library(tmp_path / "v"), tmp_path / "g"
    arguments = ("--gallery", str(gallery), "--threads", "1", "--exclude", "raw", "--prune")
    with start("index", str(bundle), str(videos), *arguments, "--watch") as process:

        def wait_for(*expected):
            deadline = time.monotonic() + 60
            while not (gallery / "gallery.sqlite").exists() or names(gallery) != [*expected]:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)

        wait_for("a.mp4", "e.mp4")
        write_video(videos / "raw" / "x.mp4", 31)
        write_video(videos / "@eaDir" / "y.mp4", 32)
        (videos / "more.ts").write_text("export const two = 2;\n")
        time.sleep(1)
        write_video(videos / "z.m2v", 33, codec="mpeg2video", rate=25, container="mpeg2video")
        wait_for("a.mp4", "e.mp4", "z.m2v")  # by then the others have come to rest, too
        (videos / "a.mp4").rename(videos / "#recycle" / "a.mp4")  # as a NAS deletes
        wait_for("e.mp4", "z.m2v")
        for counts in ("1 #recycle/, 1 .ts", "2 .ts, 1 #recycle/"):
            told = f"Skipped: {counts}, 1 .txt, 1 @eaDir/.\n"
            assert process.stderr.readline() == told
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err == "Interrupted.\n"
