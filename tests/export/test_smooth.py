"""Outliers in a LayerNormalization's gain, moved into the weights behind it."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from dgl_export.calibration import made_calibration
from dgl_export.fold import fold
from dgl_export.layer_statistics import layer_errors, linear_layers, observe, weights_of
from dgl_export.quantize import Quantizer
from dgl_export.smooth import smooth
from dgl_export.to_onnx import write_clip_encoder
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES, make_model


@pytest.fixture(scope="module")
def feeds():
    half = made_calibration(frame_spec(NUM_FRAMES, 16), clip_tokenizer(20)).calibrates
    return list(half.clip_feeds())


@pytest.fixture(scope="module")
def with_outliers(feeds, tmp_path_factory):
    """A clip encoder in which two channels behind every LayerNormalization are large, as in CLIP."""
    import torch

    model = make_model(tiny_backbone(), "dgl-linear")
    with torch.no_grad():
        for block in model.backbone.vision.blocks:
            for norm in (block.ln_1, block.ln_2):
                norm.weight[[3, 9]] *= 60
    folded = fold(model)
    folder = tmp_path_factory.mktemp("outliers")
    frames = torch.from_numpy(feeds[0]["frames"])
    graph = write_clip_encoder(folded.clip_encoder, frames, folder, any_frames=True)
    return onnx.load(folder / graph.file)


def run(model, feed):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def test_the_outputs_stay(with_outliers, feeds):
    smoothed, _ = smooth(with_outliers, observe(with_outliers, feeds))
    assert np.abs(run(smoothed, feeds[0]) - run(with_outliers, feeds[0])).max() < 1e-5


def test_what_layers_read_is_told_without_running_again(with_outliers, feeds):
    smoothed, rows = smooth(with_outliers, observe(with_outliers, feeds))
    again = observe(smoothed, feeds)
    assert rows.keys() == again.keys()
    for name, values in rows.items():  # which row has the largest number may differ
        largest = np.abs(again[name]).max(axis=0)
        assert np.allclose(np.abs(values).max(axis=0), largest, rtol=0.5, atol=1e-3)


@pytest.mark.parametrize("name", ["blocks.0.q", "blocks.0.fc"])
def test_int8_loses_less(with_outliers, feeds, name):
    def error(model, rows):
        layers = linear_layers(model)
        quantizer = Quantizer.calibrated("int8", rows)
        return layer_errors(layers, weights_of(model, layers), rows, quantizer.roundings)[name]

    rows = observe(with_outliers, feeds)
    assert error(*smooth(with_outliers, rows)) < 0.5 * error(with_outliers, rows)
