"""dgl-bench quality on a tiny run: what is measured, and what is told where it cannot be."""

import csv
import json

import pytest
from click.testing import CliRunner

from benchmarks import quality
from benchmarks.cli import bench
from dgl_export.formats import Target
from dgl_runtime.bundle.manifest import MIN_COSINE
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from tests.helpers.odd_videos import write_video
from tests.helpers.tiny import write_tiny_backbone


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and a csv of its clips."""
    folder = tmp_path_factory.mktemp("quality")
    backbone = load_backbone(BackboneSource(str(write_tiny_backbone(folder / "run/backbone"))))
    settings = ModelSettings("dgl-linear", PromptCounts(), 3, 20)
    save_checkpoint(folder / "run/best.safetensors", build_model(backbone, settings))
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption", "split"])
        for number in range(12):
            video = write_video(folder / f"video{number}.mp4", 12 + number)
            rows.writerow([video.name, f"clip {number}", "test" if number < 4 else "val"])
    return folder


def test_each_target_is_evaluated_and_what_fails_is_told(made, tmp_path, monkeypatch):
    targets = {"onnx fp32": Target("onnx", "fp32"), "onnx int8": Target("onnx", "int8")}
    monkeypatch.setattr(quality, "TARGETS", targets)
    monkeypatch.setitem(MIN_COSINE, "int8", 1.0)  # a gate that nothing passes
    command = ["quality", str(made / "run"), "--dataset", str(made / "clips.csv")]
    result = CliRunner().invoke(bench, [*command, "--rounds", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    document = json.loads(next(tmp_path.glob("quality-*.json")).read_text())
    torch_row, onnx_row, int8_row = document["results"]
    assert (torch_row["name"], onnx_row["name"]) == (quality.TORCH, "onnx fp32")
    assert onnx_row["recall"] == torch_row["recall"]
    assert onnx_row["cost"]["min_cosine"] == pytest.approx(1, abs=1e-5)
    assert onnx_row["cost"]["num_captions"] == 4
    assert onnx_row["query_ms"]["median"] > 0
    assert "quality gate: int8" in int8_row["failure"]
    assert "onnx int8: quality gate" in result.stdout
