"""A BLIP exported, untuned: from raw pictures and texts on, its bundle answers as transformers does."""

import numpy as np
import pytest

from dgl_export.bundle_writer import write_bundle
from dgl_export.formats import Target
from dgl_export.request import untuned_request
from dgl_runtime.encoder.encoder import Encoder
from tests.helpers.blip_folders import embedded_by_transformers, write_blip
from tests.helpers.open_clip_folders import SENTENCES

PICTURE = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = [*SENTENCES, "", "A Dog: (two people) & snow!!", " ".join(SENTENCES * 3)]


@pytest.mark.parametrize("file_format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_bundle_answers_as_transformers(tmp_path, file_format):
    folder = write_blip(tmp_path / "backbone")
    theirs = embedded_by_transformers(folder, PICTURE, TEXTS)
    request = untuned_request(str(folder), "")
    assert (request.max_tokens, request.num_frames) == (35, 12)
    write_bundle(request, tmp_path / "bundle", Target(file_format, "fp32"))
    encoder = Encoder(tmp_path / "bundle", engine=file_format, threads=1)
    found = encoder.embed_texts(TEXTS)
    np.testing.assert_allclose(found, theirs.texts.numpy(), rtol=0, atol=1e-5)
    for text, wanted in zip(TEXTS, theirs.texts.numpy(), strict=True):
        np.testing.assert_allclose(encoder.embed_texts([text])[0], wanted, rtol=0, atol=1e-5)
    picture = encoder.embed_pictures([PICTURE])
    np.testing.assert_allclose(picture, theirs.picture.numpy(), rtol=0, atol=1e-5)
    assert encoder.bundle.manifest.frame_wise
    texts = encoder.bundle.manifest.inputs.texts
    assert (texts.clean, texts.read, texts.pad_to) == ("blip", "first", None)
