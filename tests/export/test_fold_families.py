"""Folding is exact in every kind of tower that prompts can be put into."""

import pytest
import torch
from torch import nn

from dgl_export.fold import fold
from dgl_export.folded_ends import FoldedMapPooling
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.backbones.towers import TextTower, VisionTower
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import ModelSettings, build_model, trained_parameters
from dgl_train.model.prompts import PromptCounts
from tests.helpers.blip_folders import write_blip
from tests.helpers.open_clip_folders import SENTENCES, write_open_clip

PROMPTED = {  # by family: what of the towers is not CLIP's
    "clip": "",
    "layer-scale": "LayerScale",
    "mean-of-patches": "the mean of patches, normed behind it",
    "siglip": "no class token, map pooling, texts that see all, padding too",
    "mobileclip-b": "a stem of convolutions",
    "pe": "a class token, rotation, map pooling",
    "eva02": "rotation, SwiGLU, norms inside",
    "metaclip2": "another tokenizer",
    "clipa": "texts that see all, read at their last place",
    "causal-read-last": "causal texts that are padded, read at their last place",
    "no-start": "causal texts without a start token",
    "blip": "norms behind attention and MLP, texts that see all but padding, read at their first place",
}
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Each family's, as a function: a method may change a backbone."""
    folder = tmp_path_factory.mktemp("families")

    def load(family):
        path = folder / family
        if not path.exists():
            write_blip(path) if family == "blip" else write_open_clip(path, family)
        return load_backbone(BackboneSource(str(path)))

    return load


def random_frames(backbone, batch=2, num_frames=NUM_FRAMES):
    size = backbone.facts.inputs.frames.size
    generator = torch.Generator().manual_seed(1)
    shape = (batch, num_frames, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
def assert_folds(model):
    """Folded and not, the same of texts of many lengths and of clips."""
    tokens = torch.from_numpy(model.tokenizer([*SENTENCES, ""]).ids)
    frames = random_frames(model.backbone)
    folded = fold(model)
    gold = model.encode_captions(tokens.long())
    torch.testing.assert_close(folded.text_encoder(tokens), gold, rtol=0, atol=2e-6)
    embeddings, weights = folded.clip_encoder(frames)
    torch.testing.assert_close(embeddings, model.encode_clips(frames), rtol=0, atol=2e-6)
    torch.testing.assert_close(weights, model.frame_weights(frames), rtol=0, atol=2e-6)
    floats = fold(model, uint8=False).clip_encoder(model.backbone.normalize(frames))[0]
    torch.testing.assert_close(floats, embeddings, rtol=0, atol=2e-6)


def trained(backbone, method, counts=None, **more):
    """A model whose prompts are as large as tokens, so that each of them counts."""
    torch.manual_seed(5)
    settings = ModelSettings(method, counts or PromptCounts(2, 3, 4), NUM_FRAMES, 20, **more)
    model = build_model(backbone, settings).model.eval()
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


@pytest.mark.parametrize("method", ["dgl-linear", "dgl-transformer", "unshared"])
@pytest.mark.parametrize("family", PROMPTED)
def test_prompts_fold_exactly(backbones, family, method):
    backbone = backbones(family)
    assert isinstance(backbone.vision, VisionTower)
    assert isinstance(backbone.text, TextTower)
    assert backbone.facts.no_prompts == ""
    assert_folds(trained(backbone, method, frame_positions=method == "unshared"))


@pytest.mark.parametrize("family", PROMPTED)
def test_frame_prompts_alone_fold_exactly(backbones, family):
    counts = PromptCounts(0, 3, 4)
    assert_folds(trained(backbones(family), "unshared", counts, visual_output="mean-frames"))


@pytest.mark.parametrize("family", PROMPTED)
def test_a_backbone_alone_folds_exactly(backbones, family):
    assert_folds(FrameMeanModel(backbones(family)).eval())


def test_a_stem_of_convolutions_takes_pixels_of_any_mean(backbones):
    backbone = backbones("mobileclip-b")
    backbone.mean += torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    assert_folds(FrameMeanModel(backbone).eval())


def test_pixels_become_part_of_one_convolution_and_a_query_of_its_keys(backbones):
    folded = fold(FrameMeanModel(backbones("pe")).eval()).clip_encoder
    assert isinstance(folded.embed.stem, nn.Conv2d)
    assert isinstance(folded.read.pooling, FoldedMapPooling)


@pytest.mark.parametrize("method", ["full", "bias", "lora"])
@pytest.mark.parametrize("family", PROMPTED)
def test_what_changes_the_backbone_folds_exactly(backbones, family, method):
    settings = ModelSettings(method, PromptCounts(), NUM_FRAMES, 20)
    model = build_model(backbones(family), settings).model.eval()
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    assert_folds(model)


@pytest.mark.parametrize("method", ["adapter-attention", "adapter-mlp"])
@pytest.mark.parametrize("family", PROMPTED)
def test_adapters_start_as_nothing_and_are_trained(backbones, family, method):
    settings = ModelSettings(method, PromptCounts(), NUM_FRAMES, 20)
    model, frames = build_model(backbones(family), settings).model, random_frames(backbones(family))
    with torch.no_grad():
        alone = FrameMeanModel(backbones(family)).encode_clips(frames)
    found = model.encode_clips(frames)
    torch.testing.assert_close(found, alone)
    tokens = torch.from_numpy(model.tokenizer(SENTENCES).ids).long()
    (found.sum() + model.encode_captions(tokens).sum()).backward()
    assert all(one.grad is not None for one in trained_parameters(model).values())


@pytest.mark.parametrize("family", ["mobileclip-s", "convnext", "resnet"])
def test_caption_prompts_alone_fold_where_the_image_encoder_is_no_tower(backbones, family):
    backbone = backbones(family)
    assert not isinstance(backbone.vision, VisionTower)
    counts = PromptCounts(0, 0, 4)
    model = trained(backbone, "unshared", counts)
    before = set(model.state_dict())
    assert_folds(model)
    assert set(model.state_dict()) == before
    frames = random_frames(backbone)
    alone = FrameMeanModel(backbones(family)).eval()
    with torch.no_grad():
        assert torch.equal(model.encode_clips(frames), alone.encode_clips(frames))
        tokens = torch.from_numpy(model.tokenizer(SENTENCES).ids).long()
        assert not torch.allclose(model.encode_captions(tokens), alone.encode_captions(tokens))


@pytest.mark.parametrize(
    ("family", "live"), [("clip", 2), ("pe", 2), ("siglip", 4), ("clipa", 4), ("blip", 4)]
)
@pytest.mark.parametrize("projection", ["visual-to-text", "text-to-visual"])
def test_both_halves_of_the_caption_prompts_are_live_where_texts_see_all(
    backbones, family, live, projection
):
    model = trained(backbones(family), "dgl-linear", projection=projection)
    captions = model.prompts().captions
    assert captions.shape[1] == live
    tokens = torch.from_numpy(model.tokenizer(SENTENCES).ids).long()
    model.encode_captions(tokens).sum().backward()
    for name, parameter in model.prompts.named_parameters():
        is_of_captions = name.startswith("to_caption") or (
            projection[0] == "t" and name == "latent"
        )
        assert not is_of_captions or float(parameter.grad.abs().sum()) > 0, name


def test_rotation_moves_tokens_and_not_prompts(backbones):
    block = backbones("pe").vision.blocks[0]
    tokens = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, moved = block.project_qkv(tokens), block.project_tokens(tokens)
    for still, turned in zip(plain[:2], moved[:2], strict=True):
        torch.testing.assert_close(still[:, :, 0], turned[:, :, 0])  # the class token has no place
        assert not torch.allclose(still[:, :, 1:], turned[:, :, 1:])
        torch.testing.assert_close(still.norm(dim=-1), turned.norm(dim=-1))
    assert torch.equal(plain[2], moved[2])


def test_an_encoder_with_a_part_that_is_not_known_is_taken_as_it_is(backbones, monkeypatch):
    """What no list of parts names is noticed by what comes out."""
    from dgl_train.model.backbones import open_clip_towers

    shape_of = open_clip_towers.block_shape

    def other(transformer, eps):
        shape = shape_of(transformer, eps)
        return type(shape)(**{**vars(shape), "activation": "silu"})

    monkeypatch.setattr(open_clip_towers, "block_shape", other)
    backbone = backbones("clip")
    assert not isinstance(backbone.vision, VisionTower)
    assert not isinstance(backbone.text, TextTower)
    assert "parts that are not known here, by which it is off by" in backbone.facts.no_prompts
