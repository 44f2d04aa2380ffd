"""Training's check and indexing read by one rule: they say the same of the same file."""

import os
from fractions import Fraction

import pytest

from dgl_runtime.decoding.decode_pool import DecodePool
from dgl_runtime.decoding.read_video import Done, Job, ReadHere
from dgl_runtime.media.segmentation import Segmentation
from dgl_train.data.verify import examine_video
from tests.helpers.annotations import damage_all
from tests.helpers.odd_videos import damage, truncate, write_video
from tests.helpers.random_media import Recipe, make
from tests.helpers.specs import frame_spec

SPEC = frame_spec(4, 32)
CODECS = {"webm": "libvpx", "flv": "flv1", "ts": "mpeg2video", "mkv": "libx264"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Files by name: whole, damaged, cut off, with a second recording, and what is no file."""
    folder = tmp_path_factory.mktemp("odd")
    names = "empty text header cut flipped zeros audio picture folder gone".split()
    damage_all([folder / f"{name}.mp4" for name in names])
    (folder / "picture.mp4").unlink()  # indexing takes pictures, training wants videos
    os.mkfifo(folder / "pipe.mp4")
    for kind in ("mkv", "avi", "webm", "flv", "ts", "mov"):
        whole = write_video(folder / f"whole.{kind}", 100, codec=CODECS.get(kind, "mpeg4"))
        for part in (0.5, 0.97):
            cut = folder / f"cut {part}.{kind}"
            cut.write_bytes(whole.read_bytes())
            truncate(cut, part)
    for kind, codec in (("mp4", "libx264"), ("wmv", "wmv2"), ("avi", "mpeg4")):
        recipe = Recipe(kind, codec, Fraction(25), 30, sound_s=4.0 if kind == "avi" else 0.0)
        path = make(folder / f"twice.{kind}", recipe)
        path.write_bytes(2 * path.read_bytes())
    make(folder / "sound.mkv", Recipe("mkv", "libx264", Fraction(10), 20, sound_s=9.0))
    # Cut off, and before that a stretch that does not decode.
    how = {"codec": "libx264", "gop": 100, "options": {"movflags": "faststart"}}
    truncate(damage(write_video(folder / "both.mp4", 250, **how), 0.3, 0.6), 0.85)
    return sorted({*folder.iterdir(), folder / "gone.mp4"})


def said(found, path):
    (done,) = (one for one in found if isinstance(one, Done) and one.path == path)
    return done.fault and done.fault.replace(str(path), "this video")


@pytest.mark.parametrize(
    "segmentation", [Segmentation(), Segmentation(1.0, 0.5)], ids=["whole", "windows"]
)
def test_the_check_and_indexing_say_the_same_of_every_odd_file(odd, segmentation):
    jobs = [Job(path, "not asked for") for path in odd]
    here = list(ReadHere(segmentation, SPEC).read(jobs))
    with DecodePool(segmentation, SPEC, jobs=2) as pool:
        apart = list(pool.read(jobs))
    faulty = 0
    for path in odd:
        fault = examine_video(path).fault
        faulty += fault is not None
        assert said(apart, path) == said(here, path)
        if fault is None:
            assert said(here, path) is None, path.name
        else:  # indexing tells further what clips were lost
            more = (said(here, path) or "").removeprefix(fault)
            assert ("cannot be decoded" in more) == (path.name == "both.mp4"), path.name
            assert more != said(here, path), path.name
    assert faulty >= 20
    assert len(odd) - faulty >= 7
