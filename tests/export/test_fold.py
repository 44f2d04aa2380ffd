"""Folding is algebra: the folded encoders give what the trained model gives, in every shape."""

import pytest
import torch

from dgl_export.fold import fold, fold_text, fold_vision
from dgl_export.folded_ends import Pixels
from dgl_runtime.errors import ExportError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.clip import Kind, clip_backbone
from dgl_train.model.dgl import DglModel, last
from dgl_train.model.methods import ModelSettings, build_model, make_prompts
from dgl_train.model.prompts import PromptCounts
from tests.helpers import toy_encoder
from tests.helpers.tiny import FRAME_SIZE, tiny_backbone
from tests.helpers.tiny_models import BOUND_TO_FRAMES, make_tuned

START, END = 49406, 49407
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def folded(model):
    return fold(model)


def random_tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(batch, length, dtype=torch.int32)
    tokens[:, 0] = START
    for row in tokens:
        pieces = int(torch.randint(0, length - 1, (), generator=generator))
        row[1 : 1 + pieces] = torch.randint(1, 40000, (pieces,), generator=generator)
        row[1 + pieces] = END
    return tokens


def random_frames(batch, num_frames=NUM_FRAMES):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, num_frames, 3, FRAME_SIZE, FRAME_SIZE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 9), (5, 24)])
def test_captions(model, folded, batch, length):
    tokens = random_tokens(batch, length)
    gold = model.encode_captions(tokens.long())
    torch.testing.assert_close(folded.text_encoder(tokens), gold, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 4])
def test_clips_and_their_frame_weights(model, folded, batch):
    frames = random_frames(batch)
    embeddings, weights = folded.clip_encoder(frames)
    torch.testing.assert_close(embeddings, model.encode_clips(frames), rtol=0, atol=2e-6)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))
    if isinstance(model, DglModel) and model.prompts.counts.global_prompts:
        gold = last(model.clip_states(frames, model.prompts())).frame_weights()
        torch.testing.assert_close(weights, gold, rtol=0, atol=2e-6)


@torch.no_grad()
def test_methods_free_of_frames_fold_at_any_number_of_them(model, method, folded):
    assert folded.any_frames == (method not in BOUND_TO_FRAMES)
    if method in BOUND_TO_FRAMES:
        return
    for num_frames in (1, 7):
        frames = random_frames(2, num_frames)
        gold = model.encode_clips(frames)
        torch.testing.assert_close(folded.clip_encoder(frames)[0], gold, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("num_frames", "any_frames"), [(1, True), (2, False)])
def test_prompts_of_several_frames_bind_a_graph_to_their_number(num_frames, any_frames):
    settings = ModelSettings("dgl-transformer", PromptCounts(2, 3, 4), num_frames, 20)
    assert fold(build_model(tiny_backbone(), settings).model).any_frames == any_frames


@torch.no_grad()
def test_padding_and_batch_change_nothing(folded):
    tokens = random_tokens(3, 12)
    together = folded.text_encoder(tokens)
    for row, gold in zip(tokens, together, strict=True):
        alone = folded.text_encoder(row[None, : row.argmax() + 1])[0]
        torch.testing.assert_close(alone, gold, rtol=0, atol=2e-6)


def of_depth(vision_layers, text_layers):
    """A model whose towers have so many blocks."""
    import open_clip

    clip = open_clip.CLIP(
        16,
        open_clip.CLIPVisionCfg(
            layers=vision_layers, width=24, head_width=12, patch_size=8, image_size=16
        ),
        open_clip.CLIPTextCfg(layers=text_layers, width=16, heads=2, context_length=10),
        quick_gelu=False,
    )
    kind = Kind(vision_heads=2, text_heads=2, quick_gelu=False)
    backbone = clip_backbone(clip.state_dict(), BackboneSource("x"), kind)
    settings = ModelSettings("dgl-linear", PromptCounts(), NUM_FRAMES, 10)
    return DglModel(backbone, make_prompts(backbone, settings)).eval()


def test_a_vision_tower_of_one_block_is_refused():
    with pytest.raises(ExportError, match="the vision tower has 1 block; folding needs its first"):
        fold(of_depth(1, 2))


@torch.no_grad()
@pytest.mark.parametrize(("vision_layers", "text_layers"), [(2, 3), (3, 1)])
def test_towers_of_different_depth(vision_layers, text_layers):
    model = of_depth(vision_layers, text_layers)
    folded, frames, tokens = fold(model), random_frames(2), random_tokens(2, 8)
    torch.testing.assert_close(
        folded.clip_encoder(frames)[0], model.encode_clips(frames), rtol=0, atol=2e-6
    )
    gold = model.encode_captions(tokens.long())
    torch.testing.assert_close(folded.text_encoder(tokens), gold, rtol=0, atol=2e-6)


@pytest.mark.parametrize("output", ["mean-globals", "mean-frames", "mean-all", "global-local"])
def test_visual_outputs_that_are_there_to_be_compared_are_refused(output):
    model = make_tuned("dgl-linear").model
    model.visual_output = output
    with pytest.raises(ExportError, match=f"reads clips from {output}, which is there to be comp"):
        fold(model)


@pytest.mark.parametrize("method", ["adapter-attention", "adapter-mlp"])
def test_adapters_are_refused(method):
    tuned = build_model(tiny_backbone(), ModelSettings(method, PromptCounts(), NUM_FRAMES, 20))
    with pytest.raises(ExportError, match="the model has adapters"):
        fold(tuned.model)


def test_folding_changes_no_model():
    model = make_tuned("lora").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert model.state_dict().keys() == before.keys()


def test_layers_are_named_by_their_block(folded):
    """What errors of an export and a manifest's ``kept`` call them."""
    for encoder in (folded.text_encoder, folded.clip_encoder):
        assert {"blocks.0.q.weight", "blocks.1.proj.weight"} <= encoder.state_dict().keys()


@torch.no_grad()
def test_pixels_may_come_normalised(model):
    frames = random_frames(2)
    embeddings, _ = fold(model, uint8=False).clip_encoder(model.backbone.normalize(frames))
    torch.testing.assert_close(embeddings, model.encode_clips(frames), rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_model_that_holds_what_is_no_number_does_not_fold(number):
    model = make_tuned("dgl-linear").model
    name, tensor = list(model.state_dict().items())[-1]
    tensor.view(-1)[:2] = number
    told = (
        rf"^the model's {name} holds 2 NaN or infinite numbers of {tensor.numel()}; none may be\."
    )
    with pytest.raises(ExportError, match=told):
        fold(model)


@pytest.fixture
def toy(tmp_path):
    """A model that is no CLIP, tuned by LoRA."""
    folder = toy_encoder.write_toy(tmp_path / "toy", ["a", "cat"])
    backbone = toy_encoder.load(BackboneSource(str(folder)))
    model = build_model(backbone, ModelSettings("lora", PromptCounts(), NUM_FRAMES, 6)).model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("up"):
                parameter.normal_()
    return model


@torch.no_grad()
def test_encoders_that_nothing_is_known_of_are_exported_as_they_are(toy):
    tokens = torch.tensor([[3, 4, 2, 1, 1, 1], [2, 1, 1, 1, 1, 1]], dtype=torch.int32)
    shape = (2, NUM_FRAMES, 3, toy_encoder.SIZE, toy_encoder.SIZE)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    folded, gold = fold(toy), toy.encode_clips(frames)
    torch.testing.assert_close(folded.text_encoder(tokens), toy.encode_captions(tokens.long()))
    embeddings, weights = folded.clip_encoder(frames)
    torch.testing.assert_close(embeddings, gold, rtol=0, atol=2e-6)
    torch.testing.assert_close(weights, torch.full((2, NUM_FRAMES), 1 / NUM_FRAMES))
    normalised = fold(toy, uint8=False).clip_encoder(toy.backbone.normalize(frames))[0]
    torch.testing.assert_close(normalised, gold, rtol=0, atol=2e-6)
    assert not any(part.training for part in folded.clip_encoder.modules())
    assert not any(part.training for part in folded.text_encoder.modules())
    assert folded.any_frames


def test_encoders_that_nothing_is_known_of_get_token_ids_as_in_training(toy):
    given = []
    toy.backbone.text.register_forward_pre_hook(lambda _, tokens: given.append(tokens[0].dtype))
    fold(toy).text_encoder(torch.tensor([[3, 4, 2, 1, 1, 1]], dtype=torch.int32))
    assert given == [torch.int64]


def test_prompts_of_encoders_that_nothing_is_known_of_are_refused(toy):
    prompts, backbone = make_tuned("dgl-linear").model.prompts(), toy.backbone
    with pytest.raises(ExportError, match=r"^prompts in a Text have no way to be folded yet\."):
        fold_text(backbone.text, prompts)
    with pytest.raises(ExportError, match=r"^prompts in a Vision have no way to be folded yet\."):
        fold_vision(backbone.vision, prompts, Pixels(backbone.mean, backbone.std, True))
