"""Every family of open_clip's models: what we make of raw pictures and texts is what open_clip makes of them."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dgl_runtime.errors import ConfigError
from dgl_runtime.media.pixels import preprocess
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from tests.helpers.open_clip_folders import FAMILIES, SENTENCES, write_open_clip

PICTURE = np.random.default_rng(0).integers(0, 256, (97, 150, 3), dtype=np.uint8)
TEXTS = [*SENTENCES, "", "A Bee & THE lake's edge, isn't it?", " ".join(SENTENCES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("open_clip")


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_pictures_and_texts_become_what_open_clip_makes_of_them(folder, family):
    path = write_open_clip(folder / family, family)
    theirs = open_clip.create_model(f"local-dir:{path}").eval()
    ours = load_backbone(BackboneSource(str(path)))
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    pixels = preprocess(PICTURE, ours.facts.inputs.frames)[None]
    with torch.no_grad():
        expected = theirs.encode_image(transform(Image.fromarray(PICTURE))[None])
        found = ours.vision(ours.normalize(torch.from_numpy(pixels)))
        # What a picture's values are rounded to between resize and graph is the same on both sides.
        assert F.cosine_similarity(found, expected).min() > 0.99999
        assert found.shape[1] == ours.facts.embed_dim
        rows = open_clip.get_tokenizer(f"local-dir:{path}")(TEXTS)
        expected = theirs.encode_text(rows, normalize=True)
        for text, wanted in zip(TEXTS, expected, strict=True):  # each as long as it is
            tokens = torch.from_numpy(ours.facts.tokenizer([text]).ids).long()
            torch.testing.assert_close(F.normalize(ours.text(tokens))[0], wanted, rtol=0, atol=2e-6)
        together = torch.from_numpy(ours.facts.tokenizer(TEXTS).ids).long()
        torch.testing.assert_close(F.normalize(ours.text(together)), expected, rtol=0, atol=2e-6)

