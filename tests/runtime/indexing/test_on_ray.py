"""Indexing on two real Ray machines: the gallery is that of one machine, whatever is lost meanwhile."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.indexed import add, assert_same, contents
from tests.helpers.odd_videos import numbered_picture, write_video
from tests.helpers.ray_machines import ray_machines, why_not

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}"),
]

NUM_VIDEOS, NUM_BROKEN = 300, 6
WINDOWS = ("--window", "600ms", "--stride", "300ms", "--threads", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """300 files, of which six cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(NUM_VIDEOS - NUM_BROKEN):
        pictures = [
            numbered_picture((3 * number + frame) % 256) for frame in range(20 + number % 7)
        ]
        about = {"title": str(number)}  # so that no two files have the same content
        write_video(folder / f"{number:03d}.mp4", len(pictures), pictures=pictures, metadata=about)
    for number in range(NUM_BROKEN):
        (folder / f"broken{number}.mp4").write_bytes(b"no video" * (number + 1))
    return folder


@pytest.fixture(scope="module")
def alone(bundle, videos, tmp_path_factory):
    """What one machine makes of them, undisturbed."""
    gallery = tmp_path_factory.mktemp("alone") / "gallery"
    report = add(bundle, gallery, videos, window_s=0.6, stride_s=0.3)
    assert len(report.broken) == NUM_BROKEN
    return contents(gallery)


@pytest.fixture
def machines():
    # Not below tmp_path: a socket's path may have a hundred letters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with ray_machines(Path(folder), (2, 2)) as made:
            yield made


def index(bundle, videos, gallery, *more):
    code = "from dgl_runtime.commands.index import index; index(prog_name='dgl-index')"
    given = [str(bundle), str(videos), "--gallery", str(gallery), *WINDOWS, "--ray", "auto"]
    return [sys.executable, "-c", code, *given, *more]


def await_clips(gallery, count, running):
    """Wait until a run has added so many."""
    while running.poll() is None:
        if (gallery / "gallery.sqlite").exists():
            with Gallery.open(gallery) as opened:
                if len(opened) >= count:
                    return
        time.sleep(0.05)
    raise AssertionError(running.communicate())


def test_two_machines_make_what_one_makes(bundle, videos, alone, machines, tmp_path):
    ended = machines.run(index(bundle, videos, tmp_path / "gallery"))
    assert ended.returncode == 1, ended.stderr
    told = [line for line in ended.stderr.splitlines() if "Set ray log level" not in line]
    assert len(told) == NUM_BROKEN, told  # nothing else of Ray's own
    assert_same(contents(tmp_path / "gallery"), alone)
    again = machines.run(index(bundle, videos, tmp_path / "gallery"))
    assert ": 0 clips added" in again.stdout, again.stdout + again.stderr


def test_a_machine_that_is_lost_costs_nothing(bundle, videos, alone, machines, tmp_path):
    running = machines.begin(index(bundle, videos, tmp_path / "gallery"))
    await_clips(tmp_path / "gallery", len(alone) // 5, running)
    machines.kill(1)
    out, err = running.communicate(timeout=400)
    assert running.returncode == 1, err
    assert err.count("Error: ") == NUM_BROKEN, err
    assert f"machine {machines.address(1)} of the Ray cluster is lost; others read again" in err
    assert out.startswith("300 videos: "), out  # nothing of Ray's own
    assert_same(contents(tmp_path / "gallery"), alone)


def test_after_ctrl_c_the_same_command_goes_on(bundle, videos, alone, machines, tmp_path):
    running = machines.begin(index(bundle, videos, tmp_path / "gallery"))
    await_clips(tmp_path / "gallery", len(alone) // 5, running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in err
    before = contents(tmp_path / "gallery")
    assert 0 < len(before) < len(alone)
    ended = machines.run(index(bundle, videos, tmp_path / "gallery"))
    assert ended.stderr.count("Error: ") == NUM_BROKEN
    assert_same(contents(tmp_path / "gallery"), alone)


def test_a_machine_that_does_not_see_the_videos_is_named(bundle, machines, tmp_path):
    video = bundle.parent / "videos" / "video0.mp4"
    hidden = 'mount -t tmpfs none /mnt && cp "$0" /mnt/a.mp4 && exec "$@"'  # it alone sees the file
    command = index(bundle, "/mnt", tmp_path / "gallery")
    ended = machines.run(["unshare", "--mount", "sh", "-c", hidden, str(video), *command])
    assert ended.returncode == 1
    assert "of the Ray cluster does not see /mnt/a.mp4. All of them must see" in ended.stderr


def test_no_cluster_is_one_line(bundle, videos, tmp_path, monkeypatch):
    ended = subprocess.run(
        index(bundle, videos, tmp_path / "gallery"), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: no Ray cluster is reached at 'auto'"), ended.stderr
    assert ended.stderr.count("\n") == 1
