"""dgl-index killed with SIGKILL again and again: the gallery is what it would have been anyway."""

import random
import signal
import subprocess
import time

import pytest

from dgl_runtime.gallery import Gallery

from .commands import run, start
from .indexed import assert_same, contents
from .odd_videos import write_video

NUM_KILLS = 20
MIN_KILLS_WITH_PROGRESS = 5
CUTTING = ("--window", "600ms", "--stride", "300ms", "--threads", "1")


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve")
    for number in range(12):
        write_video(folder / f"{number:02d}.mp4", 60 + number)
    return folder


def clips_in(gallery):
    """Number of clips a reader finds; None before there is a gallery."""
    if not (gallery / "gallery.sqlite").exists():
        return None
    with Gallery.open(gallery) as opened:
        return len(opened)


def await_progress(process, gallery, there, then_s):
    """Wait until a run has added clips or ended, and a random moment longer."""
    while process.poll() is None and (clips_in(gallery) or 0) <= there:
        time.sleep(0.002)
    try:
        process.wait(then_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)


def test_a_gallery_killed_twenty_times_equals_an_undisturbed_one(bundle, twelve, tmp_path):
    def arguments(gallery):
        return (str(bundle), str(twelve), "--gallery", str(gallery), *CUTTING)

    started = time.monotonic()
    assert run("index", *arguments(tmp_path / "undisturbed"))[::2] == (0, "")
    duration_s = time.monotonic() - started
    expected = contents(tmp_path / "undisturbed")
    total = clips_in(tmp_path / "undisturbed")
    assert total > 200

    # Half of the moments are spread over an undisturbed run, half follow a commit, so that enough of
    # them hit a run at work however fast the machine is just then. Where a run ends before its moment, the
    # gallery is whole: it is compared, and the killing goes on, a little earlier, with a new one.
    moments = random.Random(7)
    waiting = [duration_s * (part + moments.random()) / NUM_KILLS for part in range(NUM_KILLS)]
    moments.shuffle(waiting)
    galleries, history = [tmp_path / "killed0"], [0]
    killed = killed_with_progress = 0
    while killed < NUM_KILLS:
        gallery = galleries[-1]
        with start("index", *arguments(gallery)) as process:
            if killed % 2:
                await_progress(process, gallery, history[-1], moments.uniform(0, 0.05))
            else:
                await_progress(process, gallery, -1, waiting[killed])  # at once: 0 > -1
            _, err = process.communicate()
        if process.returncode == 0:
            assert_same(contents(gallery), expected)
            galleries.append(tmp_path / f"killed{len(galleries)}")
            history = [0]
            waiting[killed] *= 0.8
            continue
        assert (process.returncode, err) == (-signal.SIGKILL, "")
        killed += 1
        there = clips_in(gallery) or 0
        assert history[-1] <= there <= total, "clips were lost"
        killed_with_progress += history[-1] < there < total
        history.append(there)
    code, out, err = run("index", *arguments(galleries[-1]))
    assert (code, err) == (0, "")
    assert f"holds {total} clips." in out
    assert killed_with_progress >= MIN_KILLS_WITH_PROGRESS, history
    for gallery in galleries:
        assert_same(contents(gallery), expected)
