"""To read is a sign of life: a video on a slow share is waited for, one that is read in circles is not."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgl_runtime.decoding.decode_pool import Clips, DecodePool, Done, Job
from dgl_runtime.decoding.decode_process import DecodeProcess, Limits, LostWorkerError
from dgl_runtime.media.segmentation import Segmentation
from tests import ROOT
from tests.helpers.odd_videos import write_video
from tests.helpers.specs import frame_spec

HELPERS = ROOT / "tests/helpers"
pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc")


@pytest.fixture
def slow_share(tmp_path, monkeypatch):
    """From now on new processes read files named *.slow.* 4096 bytes in some milliseconds."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    library = tmp_path / "slow_reads.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HELPERS / "slow_reads.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)

    def slow_down(milliseconds):
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("SLOW_READS_MS", str(milliseconds))

    return slow_down


def test_a_video_that_is_read_for_longer_than_a_silence_is_waited_for(tmp_path, slow_share):
    path = write_video(tmp_path / "film.slow.ts", 60, codec="mpeg2video", size=(320, 240))
    slow_share(100)
    begun = time.monotonic()
    with DecodePool(
        Segmentation(3.0), frame_spec(2, 32), jobs=1, limits=Limits(silent_s=1.0)
    ) as pool:
        found = list(pool.read([Job(path, content="known")], lambda seen: range(len(seen.spans))))
    assert time.monotonic() - begun > 3.0  # or it was not slow
    assert [one.fault for one in found if isinstance(one, Done)] == [None]
    assert sum(len(one.numbers) for one in found if isinstance(one, Clips)) == 2


def test_a_read_that_never_ends_is_given_up(tmp_path, slow_share):
    path = write_video(tmp_path / "film.slow.ts", 10)
    slow_share(60_000)
    with DecodePool(
        Segmentation(3.0), frame_spec(2, 32), jobs=1, limits=Limits(silent_s=2.0)
    ) as pool:
        (done,) = pool.read([Job(path, content="known")], lambda seen: [0])
    assert done.fault == (
        f"{path} took more than 2 s without any progress: nothing read, nothing shown. Play it to check, and "
        "look at the disk or share it lies on."
    )


def test_what_reads_in_circles_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    )
    path = write_video(tmp_path / "film.mp4", 10)
    process = DecodeProcess.start(Limits(silent_s=1.0), "tests.helpers.reads_for_ever")
    try:
        with pytest.raises(LostWorkerError, match="without any progress"):
            process.make({"path": str(path)})
    finally:
        process.close()
    assert "tests.helpers.reads_for_ever" not in sys.modules
