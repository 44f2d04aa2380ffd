"""dgl-bench search and its study: what is compared, on what, and what becomes of what is not installed."""

import numpy as np
import pytest

from dgl_bench import search
from dgl_bench.search import CLIPS, OURS, OURS_APPROXIMATE, OURS_EXACT, TEXTS, choose, compare
from dgl_bench.search_vectors import BLOCK, CLIPS_OF_A_VIDEO, MadeEmbeddings
from studies.search_libraries import LIBRARIES


@pytest.fixture
def here(monkeypatch, small_peaks):
    """Measurements in this process, on few queries."""
    monkeypatch.setattr(search, "_apart", lambda function, *args: function(*args))
    monkeypatch.setattr(search, "QUERIES", 20)


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
    library = LIBRARIES[name]
    pytest.importorskip(library.module)
    search.make_gallery(tmp_path, 3_000, 32)
    search.make_queries(tmp_path, 32)
    row, file = search.build(tmp_path, name, library)
    assert row["built on all cores, s"] > 0
    opened, points = search.examine(tmp_path, library, file, 600)
    assert points[-1][f"recall {TEXTS}"] > 0.98
    assert points[-1][f"recall {CLIPS}"] > 0.98
    assert all(point[f"recall {TEXTS}"] > 0.2 for point in points)
    breadths = [point["breadth"] for point in points]
    assert breadths == [None] if library.is_exact else 600 in breadths
    assert opened["opened in ms"] > 0
    assert opened["own MB, searched"] >= 0


def test_all_sizes_are_told_and_how_to_install_what_is_missing(here):
    absent = search.Library("no_such_package", "it", False, None, None)
    report = compare("search", {**OURS, "absent": absent}, (900, 300), 4, 16)
    latency, files, sweep = (table.rows for table in report.tables)
    assert [(one["clips"], one["search"]) for one in latency] == [
        (size, name) for size in (300, 900) for name in (OURS_EXACT, OURS_APPROXIMATE)
    ]
    assert [one["search"] for one in files] == [OURS_EXACT, OURS_APPROXIMATE] * 2
    exact, approximate = latency[:2]
    assert (exact["recall texts"], exact["recall clips"], exact["breadth"]) == (1, 1, None)
    assert exact["of bandwidth, %"] > 0
    assert exact["ours faster"].median > 0
    assert (len(exact["times_ms"]), len(approximate["times_ms"])) == (4, 4)
    assert approximate["ours faster"] is None
    assert {one["clips"] for one in sweep} == {300, 900}
    assert "Not measured, absent: pip install 'it'." in report.notes
    assert [plot.name for plot in report.plots] == ["latency", "recall-300", "recall-900"]


def test_the_command_measures_in_processes_of_their_own(measured):
    settings, (latency, files, _) = measured(search.search, "--sizes", "200", "--rounds", 2)
    assert settings["sizes"] == "200"
    assert [one["search"] for one in latency] == list(OURS)
    assert all(one["file MB"] > 0 for one in files)


def point(breadth, recall):
    return {"breadth": breadth, f"recall {TEXTS}": recall}


def test_ours_is_timed_as_it_ships_and_others_where_they_find_enough():
    points = [point(16, 0.9), point(512, 0.992), point(1024, 0.999)]
    assert choose(OURS_APPROXIMATE, points, 512)["breadth"] == 512
    assert choose("hnswlib", [point(16, 0.9), point(32, 0.99), *points], 512)["breadth"] == 32
    assert choose("hnswlib", [point(16, 0.9), point(32, 0.98)], 512)["breadth"] == 32
    assert choose(OURS_EXACT, [point(None, 1.0)], 512)["breadth"] is None
