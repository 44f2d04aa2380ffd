"""dgl-index --watch: videos that come, change and go while it runs."""

import signal
import time

import pytest

from tests.helpers.commands import start
from tests.helpers.indexed import names
from tests.helpers.odd_videos import write_video

pytest.importorskip("watchfiles")


def until(condition, process, patience_s=60):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def names_in(gallery):
    return names(gallery) if (gallery / "gallery.sqlite").exists() else []


def test_a_folder_is_followed_until_ctrl_c(bundle, tmp_path):
    videos, gallery = tmp_path / "videos", tmp_path / "gallery"
    videos.mkdir()
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    arguments = ("--gallery", str(gallery), "--threads", "1", "--prune", "--watch")
    with start("index", str(bundle), str(videos), *arguments) as process:
        assert process.stderr.readline().startswith("Error: No video found")  # and it waits
        time.sleep(1)
        write_video(videos / "a.mp4", 20)
        until(lambda: names_in(gallery) == ["a.mp4"], process)
        with (videos / "slow.mp4").open("wb") as file:
            for first in range(
                0, len(whole), 1 + len(whole) // 3
            ):  # as a camera or a download writes
                file.write(whole[first : first + 1 + len(whole) // 3])
                file.flush()
                time.sleep(1.5)
        until(lambda: names_in(gallery) == ["a.mp4", "slow.mp4"], process)
        (videos / "a.mp4").rename(videos / "b.mp4")
        until(lambda: names_in(gallery) == ["b.mp4", "slow.mp4"], process)
        (videos / "slow.mp4").unlink()
        until(lambda: names_in(gallery) == ["b.mp4"], process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "Interrupted.\n"  # nothing half written was taken for a broken video
    assert "videos broken" in out
