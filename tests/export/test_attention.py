"""A run and what is exported from it: the same attention, the same figures, one protocol."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dgl_export.bundle_writer import write_bundle
from dgl_export.request import ExportRequest
from dgl_runtime import Retriever
from dgl_train.commands.evaluate import evaluate
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.evaluation.attention import draw_attention
from dgl_train.model.checkpoint import load_checkpoint
from tests.helpers.runs import write_csv, write_run
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import write_tiny_backbone, write_tiny_clips
from tests.helpers.tiny_models import NUM_FRAMES, make_model


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_tiny_clips(tmp_path_factory.mktemp("clips"), split="test")


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer"])
def test_frame_weights_beside_the_pictures_are_those_of_the_exported_graph(
    backbone, method, clips, tmp_path
):
    model = make_model(backbone, method)
    request = ExportRequest(model, method, NUM_FRAMES, 20, "a checkpoint", "0" * 64)
    write_bundle(request, tmp_path / "bundle")
    draw_attention(
        tmp_path / "pictures", model, clips, num_frames=NUM_FRAMES, device=torch.device("cpu")
    )
    entries = json.loads((tmp_path / "pictures" / "attention.json").read_text("utf-8"))
    form = FrameFormat(frame_spec(NUM_FRAMES, backbone.facts.inputs.frames.size))
    (batch,) = read_batches(clips, form, evaluation_batches(8, 8))
    exported = Retriever(tmp_path / "bundle").embed_clips(batch.frames.numpy()).frame_weights
    drawn = [entry["frame_weights"] for entry in entries]
    np.testing.assert_allclose(drawn, exported, atol=1e-5)
    assert np.ptp(exported) > 0.01  # not all alike


def test_a_bundle_is_measured_like_the_run_it_came_from(clips, tmp_path):
    run = write_run(tmp_path / "run", write_tiny_backbone(tmp_path / "backbone"))
    model = load_checkpoint(run).model
    write_bundle(ExportRequest(model, "dgl-linear", 2, 24, "run", "0" * 64), tmp_path / "bundle")
    data = ["--dataset", str(write_csv(tmp_path / "clips.csv", clips)), "--device", "cpu"]

    def measure(path, *options):
        return CliRunner().invoke(evaluate, [str(path), *data, *map(str, options)])

    ours, exported = (
        json.loads(measure(path, "--json").stdout) for path in (run, tmp_path / "bundle")
    )
    assert exported["selection"] == "selection not recorded in the bundle"
    for way in ("text_to_video", "video_to_text"):
        assert ours[way] == exported[way]
    assert measure(tmp_path / "bundle", "--out", tmp_path / "report").exit_code == 0
    assert "data:image/jpeg" in (tmp_path / "report" / "report.html").read_text("utf-8")
    refused = measure(tmp_path / "bundle", "--attention", tmp_path / "pictures")
    assert refused.stderr == (
        f"Error: {tmp_path / 'bundle'} is an exported bundle, whose attention is not kept. "
        "Give --attention with the run it was exported from.\n"
    )
