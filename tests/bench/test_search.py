"""dgl-bench search: what is compared, on what, and what becomes of what is not installed."""

import json
import os
import sys

import numpy as np
import pytest
from benchmarks.cli import bench
from benchmarks.search import SearchSettings, bench_search, choose
from benchmarks.search_libraries import LIBRARIES, OURS_APPROXIMATE, OURS_EXACT, remedy
from benchmarks.search_measure import CLIPS, TEXTS, Point
from benchmarks.search_report import make_report, write_plots
from benchmarks.search_vectors import BLOCK, CLIPS_OF_A_VIDEO, MadeEmbeddings
from click.testing import CliRunner

from benchmarks import search, search_measure
from dgl_runtime.errors import EngineError


@pytest.fixture
def here(monkeypatch, small_peaks):
    """Measurements in this process, on few queries."""
    monkeypatch.setattr(search, "_apart", lambda function, *args: function(*args))
    monkeypatch.setattr(search_measure, "QUERIES", 20)


@pytest.fixture
def only_ours(monkeypatch):
    """FAISS and hnswlib as if they were not installed."""
    absent = {name: "pip install 'it'" for name in LIBRARIES if not name.startswith("ours")}
    monkeypatch.setattr(search, "remedy", absent.get)


def test_cosines_of_made_embeddings_are_those_of_clip():
    made = MadeEmbeddings.of_width(512)
    clips = next(made.clips(5_000))
    texts = made.texts(clips[:200])
    np.testing.assert_allclose(np.linalg.norm(clips, axis=1), 1, atol=1e-5)
    assert clips.dtype == texts.dtype == np.float32
    between = clips[:200] @ clips[1_000:].T
    assert (between.mean(), between.std()) == pytest.approx((0.5, 0.08), abs=0.03)
    of_a_video = np.einsum("ie,ie->i", clips[::CLIPS_OF_A_VIDEO], clips[1::CLIPS_OF_A_VIDEO])
    assert of_a_video.mean() == pytest.approx(0.9, abs=0.03)
    to_any = texts @ clips[1_000:].T
    assert (to_any.mean(), to_any.std()) == pytest.approx((0.17, 0.035), abs=0.01)
    assert np.einsum("ie,ie->i", texts, clips[:200]).mean() == pytest.approx(0.3, abs=0.01)


def test_fewer_made_clips_are_a_prefix_of_more():
    made = MadeEmbeddings.of_width(16)
    fewer = np.concatenate(list(made.clips(BLOCK + 70)))
    more = np.concatenate(list(MadeEmbeddings.of_width(16).clips(2 * BLOCK)))
    assert fewer.shape == (BLOCK + 70, 16)
    np.testing.assert_array_equal(fewer, more[: len(fewer)])


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_way_to_search_finds_the_best_clips(tmp_path, name):
    if remedy(name):
        pytest.skip(f"{name}: {remedy(name)}")
    search_measure.make_gallery(tmp_path, 3_000, 32)
    search_measure.make_queries(tmp_path, 32)
    file, built = search_measure.build(tmp_path, name, 2)
    assert built.seconds > 0
    points = search_measure.sweep(tmp_path, name, file, 600)
    assert points[-1].recall[TEXTS] > 0.98
    assert points[-1].recall[CLIPS] > 0.98
    assert all(point.recall[TEXTS] > 0.2 for point in points)
    assert (
        len(points) == 1 if LIBRARIES[name].is_exact else 600 in [point.breadth for point in points]
    )
    opening = search_measure.opening(tmp_path, name, file)
    assert opening.searched.own_bytes > 0


def test_the_report_has_all_sizes_and_says_how_to_install_what_is_missing(
    tmp_path, here, only_ours
):
    result = bench_search(SearchSettings((900, 300), rounds=4, embed_dim=16))
    assert [size.num_clips for size in result.sizes] == [300, 900]
    report = make_report(result, ["a plot"])
    text = report.to_markdown()
    assert "One query among 300 clips" in text
    assert "Building and opening, 900 clips" in text
    assert text.count("FAISS HNSW: pip install 'it'") == 2
    assert "- a plot" in text
    assert str(tmp_path.parent) not in report.to_json()
    (small, large) = json.loads(report.to_json())["sizes"]
    assert [row["search"] for row in large["rows"]] == [OURS_EXACT, OURS_APPROXIMATE]
    assert len(large["rows"][1]["times_ms"][OURS_APPROXIMATE]) == 4
    assert small["rows"][0]["sweep"][0]["recall"] == {CLIPS: 1.0, TEXTS: 1.0}


def test_the_command_measures_in_processes_of_their_own(tmp_path, only_ours):
    result = CliRunner().invoke(
        bench, ["search", "--sizes", "200", "--rounds", "2", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("search-*.json")
    document = json.loads(path.read_text())
    assert document["settings"]["sizes"] == [200]
    (size,) = document["sizes"]
    assert all(row["built"]["seconds"] > 0 for row in size["rows"])
    assert OURS_APPROXIMATE in result.output


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(EngineError, match=r"was killed, most likely .* Give smaller --sizes"):
        search._apart(os._exit, 1)


def point(breadth, recall):
    return Point(breadth, {TEXTS: recall, CLIPS: 1.0}, {TEXTS: 1.0, CLIPS: 1.0})


def test_ours_is_timed_as_it_ships_and_others_where_they_find_enough():
    points = [point(16, 0.9), point(512, 0.992), point(1024, 0.999)]
    assert choose(OURS_APPROXIMATE, points, 512).breadth == 512
    assert choose("hnswlib", [point(16, 0.9), point(32, 0.99), *points], 512).breadth == 32
    assert choose("hnswlib", [point(16, 0.9), point(32, 0.98)], 512).breadth == 32
    assert choose(OURS_EXACT, [point(0, 1.0)], 512).breadth == 0


def test_plots_are_files_beside_the_report_or_one_line(tmp_path, here, only_ours, monkeypatch):
    result = bench_search(SearchSettings((300,), rounds=2, embed_dim=16))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        (line,) = write_plots(result, tmp_path)
        assert line.startswith("No plots: a plot needs matplotlib")
        assert list(tmp_path.iterdir()) == []
    pytest.importorskip("matplotlib")
    links = write_plots(result, tmp_path)
    assert len(links) == 2
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert any(path.name in link for link in links)


@pytest.mark.parametrize("sizes", ["", "0", "10,x", "10,-3", "1e6"])
def test_sizes_that_are_none_are_a_usage_error(sizes):
    result = CliRunner().invoke(bench, ["search", "--sizes", sizes])
    assert result.exit_code == 2
    assert "expected numbers above 0 with commas" in result.output
