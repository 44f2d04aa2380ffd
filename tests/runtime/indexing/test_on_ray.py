"""Indexing on two real Ray machines: the gallery is that of one machine, whatever is lost meanwhile."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
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

WINDOWS = ("--window", "600ms", "--stride", "300ms", "--threads", "1")
CPUS = 2  # of each machine, as Ray counts them


@dataclass(frozen=True)
class Films:
    """Videos, of which some cannot be read, and what one machine makes of them, undisturbed."""

    folder: Path
    num_broken: int
    alone: dict


@pytest.fixture(scope="module")
def films(bundle, tmp_path_factory):
    """From how many videos there are to these, made once."""

    @cache
    def make(count):
        folder, num_broken = tmp_path_factory.mktemp(f"films{count}"), count // 50 + 1
        for number in range(count - num_broken):
            length = 20 + number % 7
            pictures = [numbered_picture((3 * number + frame) % 256) for frame in range(length)]
            about = {"title": str(number)}  # so that no two files have the same content
            path = folder / f"{number:03d}.mp4"
            write_video(path, length, pictures=pictures, metadata=about)
        for number in range(num_broken):
            (folder / f"broken{number}.mp4").write_bytes(b"no video" * (number + 1))
        gallery = tmp_path_factory.mktemp("alone") / "gallery"
        report = add(bundle, gallery, folder, window_s=0.6, stride_s=0.3)
        assert len(report.broken) == num_broken
        return Films(folder, num_broken, contents(gallery))

    return make


@pytest.fixture(scope="module")
def machines():
    # Not below tmp_path: a socket's path may have a hundred letters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with ray_machines(Path(folder), (CPUS, CPUS)) as made:
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


def test_two_machines_make_what_one_makes(bundle, films, machines, tmp_path):
    made = films(40)
    ended = machines.run(index(bundle, made.folder, tmp_path / "gallery"))
    assert ended.returncode == 1, ended.stderr
    told = [line for line in ended.stderr.splitlines() if "Set ray log level" not in line]
    assert len(told) == made.num_broken, told  # nothing else of Ray's own
    assert_same(contents(tmp_path / "gallery"), made.alone)
    again = machines.run(index(bundle, made.folder, tmp_path / "gallery"))
    assert ": 0 clips added" in again.stdout, again.stdout + again.stderr


def test_after_ctrl_c_the_same_command_goes_on(bundle, films, machines, tmp_path):
    made = films(40)
    running = machines.begin(index(bundle, made.folder, tmp_path / "gallery"))
    await_clips(tmp_path / "gallery", len(made.alone) // 5, running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in err
    before = contents(tmp_path / "gallery")
    assert 0 < len(before) < len(made.alone)
    ended = machines.run(index(bundle, made.folder, tmp_path / "gallery"))
    assert ended.stderr.count("Error: ") == made.num_broken
    assert_same(contents(tmp_path / "gallery"), made.alone)


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.soak)])
def test_a_machine_that_is_lost_costs_nothing(bundle, films, machines, tmp_path, count):
    made = films(count)
    running = machines.begin(index(bundle, made.folder, tmp_path / "gallery"))
    await_clips(tmp_path / "gallery", len(made.alone) // 5, running)
    machines.kill(1)
    out, err = running.communicate(timeout=400)
    machines.start(1, CPUS)
    machines.await_all()
    assert running.returncode == 1, err
    assert err.count("Error: ") == made.num_broken, err
    lost = f"machine {machines.address(1)} of the Ray cluster is lost; others read again"
    assert lost in err or count == 40  # those few may be through before Ray misses it
    assert out.startswith(f"{count} videos: "), out  # nothing of Ray's own
    assert_same(contents(tmp_path / "gallery"), made.alone)


def test_a_machine_that_does_not_see_the_videos_is_named(bundle, machines, tmp_path):
    video = bundle.parent / "videos" / "video0.mp4"
    hidden = 'mount -t tmpfs none /mnt && cp "$0" /mnt/a.mp4 && exec "$@"'  # it alone sees the file
    command = index(bundle, "/mnt", tmp_path / "gallery")
    ended = machines.run(["unshare", "--mount", "sh", "-c", hidden, str(video), *command])
    assert ended.returncode == 1
    assert "of the Ray cluster does not see /mnt/a.mp4. All of them must see" in ended.stderr


def test_no_cluster_is_one_line(bundle, tmp_path):
    command = index(bundle, bundle.parent / "videos", tmp_path / "gallery", "--ray", "127.0.0.1:1")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if not line.startswith("[")]  # Ray's own
    assert len(told) == 1, told
    assert told[0].startswith("Error: no Ray cluster is reached at '127.0.0.1:1'")


def test_what_an_encoder_says_is_what_is_told(bundle, films, machines, tmp_path):
    """The machines lose a part of the bundle when the run has looked at it."""
    broken = shutil.copytree(bundle, tmp_path / "broken")
    manifest = broken / "manifest.json"
    lose = (
        "import dgl_runtime.indexing.on_ray as on, pathlib; ask = on.require_all_see; "
        f"lose = pathlib.Path({str(manifest)!r}).unlink; "
        "on.require_all_see = lambda paths: (ask(paths), lose()); "
    )
    command = index(broken, films(40).folder, tmp_path / "gallery")
    command[2] = lose + command[2]
    ended = machines.run(command)
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if not line.startswith("[")]
    assert told[-1].startswith("Error: ")
    assert "manifest.json" in told[-1]
    assert "Traceback" not in ended.stderr
