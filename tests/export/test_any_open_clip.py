"""Small models of every family of open_clip: exported untuned, and equal to open_clip from raw inputs on."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dgl_export.bundle_writer import write_bundle
from dgl_export.formats import Target
from dgl_export.request import untuned_request
from dgl_runtime.encoder.encoder import Encoder
from tests.helpers.open_clip_folders import FAMILIES, SENTENCES, write_open_clip

PICTURE = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
QUICK = ("clip-quickgelu-squash", "siglip", "mobileclip")  # the others take minutes together


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_a_bundle_answers_as_open_clip(tmp_path, family):
    folder = write_open_clip(tmp_path / "backbone", family)
    write_bundle(untuned_request(str(folder), ""), tmp_path / "bundle", Target("onnx", "fp32"))
    encoder = Encoder(tmp_path / "bundle", engine="onnx", threads=1)
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(SENTENCES)
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        texts = theirs.encode_text(tokens, normalize=True).numpy()
        picture = theirs.encode_image(transform(Image.fromarray(PICTURE))[None], normalize=True)
    np.testing.assert_allclose(encoder.embed_texts(SENTENCES), texts, rtol=0, atol=1e-5)
    found = torch.from_numpy(encoder.embed_pictures([PICTURE]))
    assert F.cosine_similarity(found, picture).min() > 0.9999
    assert encoder.bundle.manifest.source.licence == "unknown"
    assert encoder.bundle.manifest.frame_wise
    frames = encoder.bundle.golden.frames
    whole = encoder.clip_engine.run({"frames": frames})
    shared = encoder.embed_clips(frames)
    np.testing.assert_allclose(shared.embeddings, whole["embedding"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(shared.frame_weights, whole["frame_weights"], rtol=0, atol=1e-6)
