"""Pictures of the global attention, and the numbers beside them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dgl_runtime.errors import ConfigError
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.evaluation.attention import draw_attention, draw_clip_attention, measure_attention
from dgl_train.model.checkpoint import load_checkpoint
from dgl_train.model.dual_encoder import FrameMeanModel
from tests.helpers.runs import write_run
from tests.helpers.specs import frame_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(backbone_folder, tmp_path_factory):
    return load_checkpoint(write_run(tmp_path_factory.mktemp("run") / "run", backbone_folder)).model


def test_shares_of_patches_and_other_tokens_make_up_the_frames(model, clips):
    (batch,) = read_batches(clips[:2], FrameFormat(frame_spec(3, 16)), evaluation_batches(2, 2))
    seen = measure_attention(model, batch.frames)
    assert (seen.frames.shape, seen.patches.shape) == ((2, 3), (2, 3, 2, 2))
    np.testing.assert_allclose(seen.frames.sum(axis=1), 1, rtol=1e-5)
    assert (seen.patches.sum(axis=(2, 3)) < seen.frames).all()
    assert (seen.patches > 0).all()


def test_patches_are_weighed_where_they_stand(model, clips):
    """A picture mirrored left to right, without positions, has its patches' shares mirrored."""
    (batch,) = read_batches(clips[:1], FrameFormat(frame_spec(2, 16)), evaluation_batches(1, 1))
    positions = model.backbone.vision.positions
    kept = positions.detach().clone()
    half = batch.frames.clone()
    half[..., :8] = 128  # flat patches mirror into themselves
    half[..., 8:] = half[..., 8:].float().mean(dim=(-1, -2), keepdim=True).to(torch.uint8)
    try:
        with torch.no_grad():
            positions.zero_()
        here = measure_attention(model, half).patches
        there = measure_attention(model, half.flip(-1)).patches
    finally:
        with torch.no_grad():
            positions.copy_(kept)
    np.testing.assert_allclose(here, there[..., ::-1], rtol=1e-4)
    assert np.abs(here - there).max() > 1e-3


def test_every_clip_has_a_picture_and_its_numbers(model, clips, tmp_path):
    draw_attention(tmp_path, model, clips[:3], num_frames=4, device=CPU)
    entries = json.loads((tmp_path / "attention.json").read_text("utf-8"))
    assert [entry["picture"] for entry in entries] == ["000.png", "001.png", "002.png"]
    assert [entry["caption"] for entry in entries] == ["the ant", "the bee", "the cat"]
    for entry in entries:
        assert np.shape(entry["frame_weights"]) == (4,)
        assert np.shape(entry["patch_weights"]) == (4, 2, 2)
        with Image.open(tmp_path / entry["picture"]) as picture:
            assert picture.format == "PNG"


def test_the_strongest_patch_is_orange_and_the_others_are_grey(tmp_path):
    frames = np.full((1, 3, 128, 128), 100, np.uint8)
    patches = np.zeros((1, 2, 2), np.float32)
    patches[0, 0, 1] = 0.25  # upper right
    draw_clip_attention(tmp_path / "a.png", "caption", frames, np.ones(1, np.float32), patches)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.array(picture).astype(int)
    orange = (pixels[..., 0] - pixels[..., 2]) > 100
    rows, columns = np.nonzero(orange)
    assert (np.ptp(rows), np.ptp(columns)) == (63, 63)
    assert orange.sum() == 64 * 64
    left, top = columns.min(), rows.min()
    np.testing.assert_array_equal(pixels[top, left - 64], [100, 100, 100])
    np.testing.assert_array_equal(pixels[top + 64, left], [100, 100, 100])


def test_a_model_without_global_prompts_is_refused(backbone, clips, tmp_path):
    with pytest.raises(ConfigError, match="a FrameMeanModel without global prompts"):
        draw_attention(tmp_path, FrameMeanModel(backbone), clips, num_frames=2, device=CPU)
