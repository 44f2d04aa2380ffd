"""Every family of open_clip: what we make of raw pictures and texts is what open_clip makes of them."""

import shutil
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dgl_bench.random_backbone import write_random
from dgl_runtime.errors import ConfigError
from dgl_runtime.media.pixels import preprocess
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.licences import (
    APPLE,
    NON_COMMERCIAL,
    licence_in,
    published_licence,
)
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from tests.helpers.open_clip_folders import FAMILIES, SENTENCES, write_open_clip

PICTURE = np.random.default_rng(0).integers(0, 256, (97, 150, 3), dtype=np.uint8)
TEXTS = [*SENTENCES, "", "A Bee & THE lake's edge, isn't it?", " ".join(SENTENCES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("open_clip")


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_pictures_and_texts_become_what_open_clip_makes_of_them(folder, family):
    path = write_open_clip(folder / family, family)
    compare_with_open_clip(path, 2e-6)


LARGER = (  # which take minutes, and of whose families there are small ones above
    *("ViT-B-32", "convnext_base", "coca_ViT-B-32", "EVA02-B-16", "MobileCLIP2-B"),
    "ViT-B-32-SigLIP2-256",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("RN50", "PE-Core-T-16-384", "MobileCLIP2-S0"),
        *(pytest.param(name, marks=pytest.mark.soak) for name in LARGER),
    ],
)
def test_models_of_real_size_become_what_open_clip_makes_of_them(tmp_path, name):
    """Random numbers; vocabularies that need a download are small ones."""
    write_random(name, tmp_path / "backbone")
    compare_with_open_clip(tmp_path / "backbone", 2e-5)


def compare_with_open_clip(path, rounding):
    """Raw pictures and texts, through open_clip's transform, tokenizer and encoders and through ours."""
    theirs = open_clip.create_model(f"local-dir:{path}").eval()
    ours = load_backbone(BackboneSource(str(path)))
    transform = image_transform_v2(PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False)
    pixels = preprocess(PICTURE, ours.facts.inputs.frames)[None]
    close = partial(torch.testing.assert_close, rtol=0, atol=rounding)
    with torch.no_grad():
        expected = theirs.encode_image(transform(Image.fromarray(PICTURE))[None])
        found = ours.vision(ours.normalize(torch.from_numpy(pixels)))
        # What a picture's values are rounded to between resize and graph is the same on both sides.
        assert F.cosine_similarity(found, expected).min() > 0.9999
        assert found.shape[1] == ours.facts.embed_dim
        rows = open_clip.get_tokenizer(f"local-dir:{path}")(TEXTS)
        expected = theirs.encode_text(rows, normalize=True)
        for text, wanted in zip(TEXTS, expected, strict=True):  # each as long as it is
            tokens = torch.from_numpy(ours.facts.tokenizer([text]).ids).long()
            close(F.normalize(ours.text(tokens))[0], wanted)
        together = torch.from_numpy(ours.facts.tokenizer(TEXTS).ids).long()
        close(F.normalize(ours.text(together)), expected)


def test_where_padding_is_attended_to_a_text_is_not_cut(folder):
    path = folder / "mobileclip-s"
    if not path.exists():
        write_open_clip(path, "mobileclip-s")
    ours = load_backbone(BackboneSource(str(path)))
    texts = ours.facts.inputs.texts
    assert (texts.pad_to, texts.max_tokens, texts.read) == (20, 20, "end")
    ids = torch.from_numpy(ours.facts.tokenizer(["a dog jumps"]).ids).long()
    with torch.no_grad():
        whole, cut = F.normalize(ours.text(ids)), F.normalize(ours.text(ids[:, :5]))
    assert float((whole * cut).sum()) < 0.999


def test_a_name_without_a_tag_has_the_pixels_of_its_first_tag():
    frames = load_backbone(BackboneSource("PE-Core-T-16-384")).facts.inputs.frames
    assert (frames.size, frames.resize, frames.interpolation) == (384, "squash", "bilinear")
    assert (frames.mean, frames.std) == ((0.5,) * 3, (0.5,) * 3)


def test_a_tokenizer_with_more_tokens_than_the_model_is_told_in_a_line(tmp_path, monkeypatch):
    config, pixels = FAMILIES["clip"]
    small = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": 1000}}
    monkeypatch.setitem(FAMILIES, "small", (small, pixels))
    path = write_open_clip(tmp_path / "small", "small")
    with pytest.raises(ConfigError, match="knows fewer tokens than its tokenizer makes"):
        load_backbone(BackboneSource(str(path)))


def test_loading_leaves_the_random_numbers_of_a_run_alone(folder):
    if not (path := folder / "clip").exists():
        write_open_clip(path, "clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        load_backbone(BackboneSource(str(path)))
        assert torch.equal(torch.rand(1), expected)


def test_weights_of_another_activation_are_refused():
    with pytest.raises(
        ConfigError, match=r"another activation than it has; take ViT-B-32-quickgelu\.$"
    ):
        load_backbone(BackboneSource("ViT-B-32", "openai"))


def test_weights_that_nobody_knows_are_told_with_those_that_are_known():
    told = "'meat' are neither a file nor a tag; its tags are: meta"
    with pytest.raises(ConfigError, match=told):
        load_backbone(BackboneSource("PE-Core-T-16-384", "meat"))


def broken(folder, file, change):
    """A folder with one of its files changed, or gone."""
    path = write_open_clip(folder / "broken", "siglip")
    if change is None:
        (path / file).unlink()
    else:
        (path / file).write_text(change((path / file).read_text()))
    return BackboneSource(str(path))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("tokenizer.json", None, r"its tokenizer, unigram, is not there: put its tokenizer\.json"),
        ("tokenizer_config.json", None, "names no padding token .*, and its texts are padded"),
        (
            "tokenizer_config.json",
            lambda text: text.replace("{", '{"padding_side": "left", ', 1),
            "its texts are padded on the left",
        ),
        ("tokenizer.json", lambda text: text[:99], r"its tokenizer, .*json, cannot be read"),
        ("open_clip_config.json", None, "does not load"),
        ("open_clip_config.json", lambda text: text.replace('"squash"', '"shrink"'), "'shrink'"),
        (
            "open_clip_config.json",
            lambda text: text.replace('"clean": "canonicalize"', '"reduction_mask": "simple"'),
            "its texts are made or read with reduction_mask 'simple', which is not known here",
        ),
        (
            "open_clip_config.json",
            lambda text: text.replace('"canonicalize"', '"remove"'),
            "its texts are made or read with clean 'remove', which is not known here",
        ),
        (
            "open_clip_config.json",
            lambda text: text.replace('"pool_type": "last"', '"pool_type": "none"'),
            "its texts are made or read with pool_type 'none', which is not known here",
        ),
        (
            "open_clip_config.json",
            lambda text: text.replace('"clean": "canonicalize"', '"strip_sep_token": true'),
            r"its texts are stripped of '\[SEP\]', with which they do not end",
        ),
        ("tokenizer_config.json", lambda text: f"[{text}]", "json, holds no JSON object"),
        (
            "open_clip_config.json",
            lambda text: text.replace('"vocab_size": ', '"vocab_size": 1'),
            "does not load: .*size mismatch",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(tmp_path, file, change, told):
    with pytest.raises(ConfigError, match=told) as error:
        load_backbone(broken(tmp_path, file, change))
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_told_in_a_line(tmp_path):
    path, other = (write_open_clip(tmp_path / one, one) for one in ("clip", "siglip"))
    shutil.copy(other / "open_clip_model.safetensors", path)
    with pytest.raises(
        ConfigError, match=r"its weights are of another model than its configuration says\.$"
    ):
        load_backbone(BackboneSource(str(path)))


def test_prompts_need_blocks_that_can_be_attended_in(folder):
    path = folder / "resnet"
    if not path.exists():
        write_open_clip(path, "resnet")
    settings = ModelSettings("dgl-linear", PromptCounts(), 2, 20)
    with pytest.raises(
        ConfigError,
        match="the blocks of its image encoder cannot be attended in \\(a ModifiedResNet image encoder\\)",
    ):
        build_model(load_backbone(BackboneSource(str(path))), settings)


@pytest.mark.parametrize(
    ("name", "tag", "licence"),
    [
        ("ViT-B-32-quickgelu", "openai", "MIT"),
        ("ViT-B-16-quickgelu", "dfn2b", APPLE),
        ("MobileCLIP2-S0", "dfndr2b", APPLE),
        ("ViT-B-32-quickgelu", "metaclip_400m", NON_COMMERCIAL),
        ("PE-Core-B-16", "meta", "Apache-2.0"),
        ("ViT-B-16-SigLIP2", "webli", "Apache-2.0"),
        ("ViT-B-32", "datacomp_xl_s13b_b90k", "MIT"),
        ("ViT-B-32", "", "unknown"),
        ("convnext_base", "somebody", "unknown"),
    ],
)
def test_licences_of_published_weights(name, tag, licence):
    assert published_licence(name, tag) == licence


def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path):
    assert licence_in(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\nlicense: mit\n")
    assert licence_in(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\nlicense: mit\n")
    assert licence_in(tmp_path) == "unknown"
