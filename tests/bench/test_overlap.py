"""Overlapping windows, small: both ways are timed, equal, and held against each other."""

import numpy as np
import pytest
from click.testing import CliRunner

from dgl_bench import overlap
from dgl_bench.index import index
from dgl_bench.overlap import made_windows, overlapping_rows
from dgl_export.bundle_writer import write_bundle
from dgl_export.request import untuned_request
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.encoder.shared_frames import SharedFrames
from tests.helpers.tiny import write_tiny_backbone


@pytest.fixture(scope="module")
def untuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untuned")
    write_bundle(
        untuned_request(str(write_tiny_backbone(folder / "backbone")), ""), folder / "bundle"
    )
    return folder / "bundle"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(overlap, "WINDOWS", 10)
    monkeypatch.setattr(overlap, "MORE", 2)
    monkeypatch.setattr(overlap, "ROUNDS", 1)


def test_windows_show_frames_of_the_windows_before(untuned):
    frames = Encoder(untuned).input_spec.frames
    batches = list(made_windows(frames, 6, 10))
    assert [len(batch) for batch in batches] == [8, 2]
    windows = np.concatenate(batches)
    np.testing.assert_array_equal(windows[1:, :6], windows[:-1, 6:])
    assert len(np.unique(windows.reshape(120, -1), axis=0)) == 12 + 9 * 6


def test_every_frame_is_encoded_once_and_windows_are_equal(untuned, few, monkeypatch):
    encoder, encoded = Encoder(untuned, engine="onnx", threads=1), []
    real = overlap._run
    monkeypatch.setattr(
        overlap, "_run", lambda _, frames: encoded.append(len(frames)) or real(_, frames)
    )
    rows = list(overlapping_rows(encoder))
    assert [row["a window begins every"] for row in rows] == ["1/2 window", "1/4 window"]
    for row in rows:
        assert row["off by"] <= 1e-6
        assert row["wrong"] is None
        assert row["times as fast"].median > 0
        assert row["MB more after 2 times the windows"] >= 0
    new = [12 + 7 * 6, 2 * 6, 12 + 7 * 3, 2 * 3]  # frames of each batch, for both overlaps
    assert sorted(encoded) == sorted([8, 2, 8, 2, *new] * 2)  # a warm-up, and a round


def test_windows_that_become_others_fail(untuned, few, tmp_path, monkeypatch):
    real = SharedFrames.embed_clips
    monkeypatch.setattr(
        SharedFrames, "embed_clips", lambda self, frames: real(self, frames) + np.float32(1e-5)
    )
    options = ("--videos", 1, "--jobs", 1, "--threads", 1, "--engine", "onnx")
    given = [untuned, *options, "--out", tmp_path / "out"]
    result = CliRunner().invoke(index, [*map(str, given)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: frames shared: off by 1e-05")
