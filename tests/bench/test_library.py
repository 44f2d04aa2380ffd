"""dgl-bench moments, index and serve, small: everything is measured and written."""

import json
import shutil

import pytest
from benchmarks.index import WINDOW_S
from benchmarks.library_cli import index, moments, serve, soak
from benchmarks.moments import CUTTINGS
from click.testing import CliRunner


def measured(command, out, *options):
    result = CliRunner().invoke(command, [*map(str, options), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (path,) = out.glob("*.json")
    assert path.with_suffix(".md").read_text() == result.stdout
    return json.loads(path.read_text())


def test_moments_are_planted_and_looked_for_in_every_cutting(bundle, tmp_path):
    pytest.importorskip("scenedetect")
    found = measured(moments, tmp_path, bundle, "--videos", 3, "--clips", 4)["found"]
    assert [one["cutting"] for one in found] == list(CUTTINGS)
    whole, windows = found[0], found[1]
    assert (whole["clips"], windows["clips"]) == (3, 12)
    assert whole["moment_recall"] == [0, 0]  # a quarter of the video is no match for all of it
    for one in found:
        first, fifth = one["video_recall"]
        assert 0 <= first <= fifth <= 100
        assert one["moment_recall"][0] <= first
        assert 0 <= one["mean_iou"] <= 1


def test_indexing_is_measured_for_each_number_of_videos_and_jobs(bundle, tmp_path):
    options = ("--videos", "1,2", "--jobs", "1,2", "--threads", 1)
    runs = measured(index, tmp_path, bundle, *options)["runs"]
    assert [(one["videos"], one["jobs"]) for one in runs] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for one in runs:
        assert one["clips"] == one["videos"] * 10 / WINDOW_S
        for name in ("seconds", "encoding_s", "main_cpu_s", "decode_cpu_s", "main_bytes"):
            assert one[name] > 0, name


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
def test_serving_is_measured_batched_and_one_by_one(bundle, tmp_path):
    pytest.importorskip("fastapi")
    options = ("--clips", 100, "--concurrency", "1,4", "--seconds", 2, "--rounds", 1)
    found = measured(serve, tmp_path, bundle, *options)
    assert {(one["mode"], one["clients"]) for one in found["loads"]} == {
        (mode, clients) for mode in ("batched", "one by one") for clients in (1, 4)
    }
    for one in found["loads"]:
        (load,) = one["rounds"]
        assert load["per_s"] > 0
        assert load["errors"] == 0
    assert found["overload"]["answered_per_s"] > 0
    assert found["overload"]["failed"] == 0


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
def test_memory_is_watched_under_mixed_load(bundle, tmp_path):
    pytest.importorskip("fastapi")
    found = measured(soak, tmp_path, bundle, "--clips", 100, "--clients", 2, "--minutes", 0.1)
    assert found["load"]["per_s"] > 0
    assert found["load"]["errors"] == 0
    assert found["resident"]
