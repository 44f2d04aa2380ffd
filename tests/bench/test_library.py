"""dgl-bench moments, index and serve, small: everything is measured and written."""

import shutil

import pytest

from dgl_bench.index import WINDOW_S, index
from dgl_bench.moments import SEGMENTATIONS, moments
from dgl_bench.serve import serve, soak


def test_moments_are_planted_and_looked_for_in_every_segmentation(bundle, measured):
    pytest.importorskip("scenedetect")
    _, (found,) = measured(moments, bundle, "--videos", 3, "--clips", 4)
    assert [one["segmentation"] for one in found] == list(SEGMENTATIONS)
    whole, windows = found[0], found[1]
    assert (whole["clips"], windows["clips"]) == (3, 12)
    # A quarter of the video is no match for all of it.
    assert (whole["moment R@1"], whole["moment R@5"]) == (0, 0)
    for one in found:
        assert 0 <= one["moment R@1"] <= one["video R@1"] <= one["video R@5"] <= 100
        assert 0 <= one["mean IoU"] <= 1


def test_indexing_is_measured_for_each_number_of_videos_and_jobs(bundle, measured):
    options = ("--videos", "1,2", "--jobs", "1,2", "--threads", 1)
    _, (rows, overlapping) = measured(index, bundle, *options)
    assert overlapping == []  # prompts see the clip as a whole
    assert [(one["videos"], one["jobs"]) for one in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for one in rows:
        assert one["clips"] == one["videos"] * 10 / WINDOW_S
        assert one["CPU of decoding, %"] + one["CPU of encoding, %"] == pytest.approx(100)
        for name in ("clips/s", "run s", "CPU s", "CPU of encoding, %", "encoder MB"):
            assert one[name] > 0, name


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
def test_serving_is_measured_batched_and_one_by_one(bundle, measured):
    pytest.importorskip("fastapi")
    options = ("--clips", 100, "--concurrency", "1,4", "--seconds", 2, "--rounds", 1)
    _, (rows, (overload,)) = measured(serve, bundle, *options)
    assert [(one["mode"], one["clients"]) for one in rows] == [
        (mode, clients) for clients in (1, 4) for mode in ("one by one", "batched")
    ]
    for one in rows:
        assert one["requests/s"]["median"] > 0
        assert one["errors"] == 0
        assert (one["more"] is None) == (one["mode"] == "one by one")
    assert overload["answered/s"] > 0
    assert overload["failed"] == 0


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
def test_memory_is_watched_under_mixed_load(bundle, measured):
    pytest.importorskip("fastapi")
    _, ((load,), memory) = measured(soak, bundle, "--clips", 100, "--clients", 2, "--minutes", 0.1)
    assert load["requests/s"] > 0
    assert load["errors"] == 0
    assert all(one["MB, most"] >= one["MB, median"] > 10 for one in memory)
