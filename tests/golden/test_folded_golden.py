"""The folded ONNX graphs, run by the runtime, against the reference numbers of the research code.

Golden frames are normalised floats, so the clip encoder is exported with float pixels here; a second test
shows that the graph of the product, which takes uint8 pixels, equals it.
"""

import numpy as np
import pytest
import torch

from dgl_export.fold import fold
from dgl_export.parity import run_captions, run_clips
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_runtime.engines.opening import open_engine
from dgl_train.model.checkpoint import load_checkpoint
from tests.golden.reference import ATOL, CASES, Case

pytestmark = pytest.mark.slow


class Exported:
    """A golden case's graphs, loaded in ONNX Runtime."""

    def __init__(self, case, folder):
        self.case = case
        self.tuned = load_checkpoint(case.write_checkpoint(folder))
        tokens, frames = (
            torch.from_numpy(case.tokens.astype(np.int32)),
            torch.from_numpy(case.frames),
        )
        self.any_frames = self.tuned.settings.method == "dgl-linear"
        folded = fold(self.tuned.model, uint8=False)
        captions = write_text_encoder(folded.text_encoder, tokens, folder)
        clips = write_clip_encoder(folded.clip_encoder, frames, folder, any_frames=self.any_frames)
        self.folder = folder
        self.captions = open_engine(folder / captions.file, device="cpu", threads=2)
        self.clips = open_engine(folder / clips.file, device="cpu", threads=2)


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    return Exported(Case(request.param), tmp_path_factory.mktemp(request.param))


def assert_unit_close(ours, gold):
    """Compare unit embeddings with golden ones, at the golden tolerance scaled by their norm."""
    norm = np.linalg.norm(gold, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    assert (np.abs(ours - gold / norm) <= ATOL["embeddings"] / norm).all()


def test_embeddings_and_logits(exported):
    gold = exported.case.gold
    captions = run_captions(exported.captions, exported.case.tokens.astype(np.int32))
    clips, _ = run_clips(exported.clips, exported.case.frames)
    assert_unit_close(captions, gold["text_embedding"])
    assert_unit_close(clips, gold["video_global_prompt0"])
    logits = captions @ clips.T * float(exported.tuned.model.logit_scale)
    np.testing.assert_allclose(logits, gold["logits_global_prompt0"], rtol=0, atol=ATOL["logits"])


def test_frame_weights_are_the_golden_attention_of_the_last_block(exported):
    gold = exported.case.gold
    if "attn_layer2_to_frames" not in gold:
        assert exported.case.name == "c_linear_t12"  # this case stores no attention
        return
    mass = gold["attn_layer2_to_frames"][:, 0].sum(axis=-1)
    _, weights = run_clips(exported.clips, exported.case.frames)
    np.testing.assert_allclose(weights, mass / mass.sum(axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_uint8_graph_equals_the_float_graph_on_real_pixels(exported, tmp_path):
    config = exported.case.config
    rng = np.random.default_rng(0)
    size, shape = config["image_size"], (2, config["frames"], 3)
    pictures = rng.integers(0, 256, (*shape, size, size), dtype=np.uint8)
    pictures[0] = np.linspace(0, 255, size, dtype=np.uint8)  # one clip of smooth pictures
    folded = fold(exported.tuned.model)
    graph = write_clip_encoder(
        folded.clip_encoder, torch.from_numpy(pictures), tmp_path, any_frames=exported.any_frames
    )
    ours, weights = run_clips(open_engine(tmp_path / graph.file, device="cpu", threads=2), pictures)
    normalised = exported.tuned.model.backbone.normalize(torch.from_numpy(pictures)).numpy()
    gold, gold_weights = run_clips(exported.clips, normalised)
    np.testing.assert_allclose(ours, gold, rtol=0, atol=2e-6)
    np.testing.assert_allclose(weights, gold_weights, rtol=0, atol=2e-6)
