"""dgl-index killed with SIGKILL again and again: the gallery is what it would have been anyway."""

import itertools
import random
import shutil
import signal
import subprocess
import time

import pytest

from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import run, start
from tests.helpers.indexed import assert_same, contents
from tests.helpers.made_galleries import through_graph
from tests.helpers.odd_videos import write_video

pytestmark = pytest.mark.slow

MIN_KILLS_WITH_PROGRESS = 5
SEGMENTATION = ("--window", "600ms", "--stride", "300ms", "--threads", "1")


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


@pytest.mark.parametrize("num_kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_a_gallery_killed_while_it_grows_equals_an_undisturbed_one(
    bundle, twelve, tmp_path, num_kills
):
    def arguments(gallery):
        return (str(bundle), str(twelve), "--gallery", str(gallery), *SEGMENTATION)

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
    waiting = [duration_s * (part + moments.random()) / num_kills for part in range(num_kills)]
    moments.shuffle(waiting)
    galleries, history = [tmp_path / "killed0"], [0]
    killed = killed_with_progress = 0
    while killed < num_kills:
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


# ---- while it is tidied up -----------------------------------------------------------------------

# A small gallery gets the graph of a large one, and the process kills itself after some number of calls
# and returns, of Python's and of C's, inside what drops clips, compacts, and builds the graph.
DEADLY = """
import os, signal, sys
import dgl_runtime.gallery.local_vector_store
from dgl_runtime.gallery.gallery import Gallery
dgl_runtime.gallery.local_vector_store.APPROXIMATE_PAYS_FROM = 1
left, called = {left}, 0
def count(*_):
    global called
    called += 1
    if called == left:
        os.kill(os.getpid(), signal.SIGKILL)
def deadly(name):
    real = getattr(Gallery, name)
    def run(self, *given, **named):
        sys.setprofile(count)
        try:
            return real(self, *given, **named)
        finally:
            sys.setprofile(None)
    setattr(Gallery, name, run)
for name in ("upsert", "remove", "compact"):
    deadly(name)
import atexit
atexit.register(lambda: open({told!r}, "w").write(str(called)))
"""


@pytest.fixture(scope="module")
def two_states(bundle, tmp_path_factory):
    """A folder as it is now and as it is then: half of the videos gone, as many new, one changed."""
    pytest.importorskip("usearch")
    root = tmp_path_factory.mktemp("states")
    states = []
    for state, numbers in enumerate((range(8), range(4, 12))):
        videos = root / f"state{state}"
        videos.mkdir()
        for number in numbers:
            frames = 30 + number + 20 * (state if number == 4 else 0)
            write_video(videos / f"{number:02d}.mp4", frames)
        states.append(videos)
    return states


def put(state, videos):
    """Make a folder what another is."""
    shutil.rmtree(videos, ignore_errors=True)
    shutil.copytree(state, videos)


@pytest.mark.parametrize("num_kills", [16, pytest.param(100, marks=pytest.mark.soak)])
def test_a_gallery_killed_while_it_is_tidied_up_equals_an_undisturbed_one(
    bundle, two_states, tmp_path, num_kills
):
    videos, told = tmp_path / "videos", str(tmp_path / "told")

    def arguments(gallery):
        return (str(bundle), str(videos), "--gallery", str(gallery), *SEGMENTATION, "--prune")

    def deadly(left):
        return DEADLY.format(left=left, told=told)

    expected, lengths = [], []
    for state in (*two_states, two_states[0]):
        put(state, videos)
        code, _, err = run("index", *arguments(tmp_path / "undisturbed"), before=deadly(-1))
        assert (code, err) == (0, "")
        expected.append(contents(tmp_path / "undisturbed"))
        lengths.append(int((tmp_path / "told").read_text()))
    assert_same(expected[2], expected[0])
    stay = expected[0].keys() & expected[1].keys()
    assert stay

    gallery, dice, killed = tmp_path / "killed", random.Random(11), 0
    put(two_states[0], videos)
    assert run("index", *arguments(gallery), before=deadly(-1))[0] == 0
    for turn in itertools.count(1):
        now = turn % 2
        put(two_states[now], videos)
        while killed < num_kills:
            left = dice.randint(1, lengths[2 if now == 0 else 1])
            code, _, err = run("index", *arguments(gallery), before=deadly(left))
            if code == 0:  # little was left to do
                break
            assert (code, err) == (-signal.SIGKILL, "")
            killed += 1
            there = contents(gallery)  # opens, and holds each clip once
            assert stay <= there.keys()
            assert there.keys() <= expected[0].keys() | expected[1].keys()
            if dice.random() < 0.3:
                break
        code, _, err = run("index", *arguments(gallery), before=deadly(-1))
        assert (code, err) == (0, "")
        assert_same(contents(gallery), expected[now])
        with Gallery.open(gallery, store=through_graph()) as opened:
            opened.warm()
        if killed == num_kills:
            break
    assert not list(gallery.glob("*.tmp"))
