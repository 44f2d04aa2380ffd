"""Videos with bytes flipped, cut out, swapped: no traceback, no hang, flat memory, the rest is indexed."""

import resource
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime import Retriever
from tests.helpers.indexed import names
from tests.helpers.odd_videos import write_video

CONTAINERS = {
    "mp4": "libx264",
    "mov": "mpeg4",
    "mkv": "libx265",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "mpg": "mpeg2video",
    "ts": "libx264",
    "flv": "flv1",
    "wmv": "wmv2",
    "3gp": "mpeg4",
}
AT_ONCE = 500


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return [
        write_video(folder / f"{number}.{container}", 24, codec=codec, rate=25)
        for number, (container, codec) in enumerate(CONTAINERS.items())
    ]


def mutated(data, rng):
    """One to eight changes at random places, more of them in the first kilobyte, where headers are."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        place = int(rng.integers(0, min(1024, len(out)) if rng.random() < 0.5 else len(out)))
        length = int(rng.integers(1, 64))
        kind = rng.integers(0, 6)
        if kind == 0:
            out[place] ^= int(rng.integers(1, 256))
        elif kind == 1:
            out[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del out[place : place + length]
        elif kind == 3:
            out[place:place] = out[place : place + length]
        elif kind == 4:  # boxes, as far as chance finds them
            other = int(rng.integers(0, len(out)))
            one = bytes(out[place : place + length])
            out[place : place + length] = out[other : other + length]
            out[other : other + length] = one
        else:
            del out[max(place, 64) :]
        if len(out) < 64:
            break
    return bytes(out)


def index_mutated(bundle, originals, folder, numbers):
    """Index mutated files and a good one; what was said of each broken one."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for number in numbers:
        original = originals[number % len(originals)]
        data = mutated(original.read_bytes(), np.random.default_rng(number))
        (videos / f"{number}{original.suffix}").write_bytes(data)
    write_video(videos / "good.mp4", 30)
    with Retriever(bundle, folder / "gallery", threads=1) as retriever:
        report = retriever.add_videos([videos], jobs=2)
    assert "good.mp4" in names(folder / "gallery")
    assert report.num_videos == len(numbers) + 1
    for broken in report.broken:
        assert broken.reason.startswith(broken.video)
        assert "\n" not in broken.reason
        assert "Traceback" not in broken.reason
    return [
        Path(broken.video).name + broken.reason[len(broken.video) :] for broken in report.broken
    ]


def resident_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(x.split()[1] for x in status.splitlines() if x.startswith("VmRSS")))


def test_two_hundred_mutated_videos(bundle, originals, tmp_path):
    said = index_mutated(bundle, originals, tmp_path, range(200))
    assert 20 < len(said) < 200


@pytest.mark.soak
def test_ten_thousand_mutated_videos(bundle, originals, tmp_path):
    memory, said = [], []
    for first in range(0, 10_000, AT_ONCE):
        said += index_mutated(
            bundle, originals, tmp_path / f"{first}", range(first, first + AT_ONCE)
        )
        memory.append(resident_bytes())
    hung = [one for one in said if "without any progress" in one]
    crashed = [one for one in said if "crashed the decoder" in one]
    assert not hung, f"{len(said)} broken, {len(crashed)} crashed"
    assert memory[-1] < memory[1] + 64 * 2**20
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert children < 4 * 2**30
