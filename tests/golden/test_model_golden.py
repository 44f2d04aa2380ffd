"""The training model against the reference numbers of the DGL research code (see README.md here).

Every model here is loaded from a research checkpoint, so its reader is proven by the same numbers.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dgl_runtime.errors import ConfigError
from dgl_train.model.checkpoint import load_checkpoint
from dgl_train.model.dgl import DglModel
from dgl_train.training.losses import Logits, softmax_loss
from tests.golden.reference import CASES, Case, assert_gold, weights

VISUAL_OUTPUTS = {
    "global-prompt": "global_prompt0",
    "mean-globals": "average_global_prompt",
    "mean-frames": "average_frame_cls_token",
    "mean-all": "average_global_prompt_and_frame_cls_token",
}
TRAINED_TENSORS = {
    "global_prompts": "visual.prompt_embeddings",
    "to_caption.weight": "prefix_text_prompt_proj_layer.weight",
    "to_caption.bias": "prefix_text_prompt_proj_layer.bias",
    "caption_fc.": "unified_prompt_mlp.c_fc.",
    "caption_proj.": "unified_prompt_mlp.c_proj.",
    "mixer.qkv.weight": "PromptTransformer.resblocks.0.attn.in_proj_weight",
    "mixer.qkv.bias": "PromptTransformer.resblocks.0.attn.in_proj_bias",
    "mixer.out.": "PromptTransformer.resblocks.0.attn.out_proj.",
    "mixer.fc.": "PromptTransformer.resblocks.0.mlp.c_fc.",
    "mixer.proj.": "PromptTransformer.resblocks.0.mlp.c_proj.",
    "mixer.ln": "PromptTransformer.resblocks.0.ln",
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def model(case, tmp_path_factory):
    return load_checkpoint(case.write_checkpoint(tmp_path_factory.mktemp("research"))).model


def test_why_a_checkpoint_does_not_fit_is_told(tmp_path):
    path = Case("a_linear").write_checkpoint(tmp_path)
    saved = torch.load(path, weights_only=True)
    whole = saved.pop("state_dict")
    prefix = next(name for name in whole if name.endswith("visual.proj")).removesuffix(
        "visual.proj"
    )
    for name, tensor, told in (
        (
            "visual.ln_post.weight",
            torch.zeros(3),
            r"size mismatch for vision\.ln_post\.weight: .*\[3\]",
        ),
        ("visual.proj", torch.zeros(()), r"DGL model: tuple index out of range\. Expected"),
    ):
        torch.save({**saved, "state_dict": {**whole, prefix + name: tensor}}, path)
        with pytest.raises(ConfigError, match=told) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prompts(model):
    with torch.no_grad():
        return model.prompts()


@pytest.fixture(scope="module")
def caption_states(case, model, prompts):
    with torch.no_grad():
        return list(model.caption_states(torch.from_numpy(case.tokens), prompts))


@pytest.fixture(scope="module")
def clip_states(case, model, prompts):
    with torch.no_grad():
        return list(model.clip_states(torch.from_numpy(case.frames), prompts))


def test_this_machine_generates_the_golden_weights(case):
    shapes = {**weights.clip_shapes(case.config), **weights.dgl_shapes(case.config)}
    for name, want in case.entry["fingerprints"].items():
        made = case.frames if name.startswith("frames/") else weights.tensor(name, shapes[name])
        got = weights.fingerprint(made)
        np.testing.assert_allclose(got["first"], want["first"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(got["sum"], want["sum"], rtol=1e-6, atol=1e-3, err_msg=name)


def test_prompts(case, prompts):
    captions = np.asarray(prompts.captions)
    frames = np.asarray(prompts.frames.detach().flatten(1, 2))
    half = captions.shape[1]
    if "unified_text_prompt" in case.gold:
        assert_gold("captions", captions, case.gold["unified_text_prompt"][:, :half], "prompts")
        assert_gold("frames", frames, case.gold["unified_visual_prompt"], "prompts")
    else:
        gold = case.gold
        assert_gold(
            "captions", captions[..., :8], gold["unified_text_prompt_slice"][:, :half], "prompts"
        )
        assert_gold("frames", frames[..., :8], gold["unified_visual_prompt_slice"], "prompts")


def test_embeddings_of_every_visual_output(case, model, caption_states, clip_states):
    with torch.no_grad():
        text = model.backbone.text.read(caption_states[-1], torch.from_numpy(case.tokens))
        globals_ = model.backbone.vision.read_pooled(clip_states[-1].globals[:, :, None])
        class_tokens = model.backbone.vision.read(clip_states[-1].frames)
    local = torch.cat([globals_[:, :1], class_tokens], dim=1)
    assert_gold("text", text, case.gold["text_embedding"], "embeddings")
    assert_gold("global_local", local, case.gold["video_global_local_feature"], "embeddings")
    for ours, name in VISUAL_OUTPUTS.items():
        with torch.no_grad():
            video = DglModel(model.backbone, model.prompts, visual_output=ours).read_clip(
                clip_states[-1]
            )
        assert_gold(name, video, case.gold[f"video_{name}"], "embeddings")
        similarity = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
        assert_gold(name, similarity * model.logit_scale, case.gold[f"logits_{name}"], "logits")


def test_public_encoders_give_the_golden_logits(case, model):
    with torch.no_grad():
        captions = model.encode_captions(torch.from_numpy(case.tokens))
        clips = model.encode_clips(torch.from_numpy(case.frames))
    logits = model.logit_scale * captions @ clips.T
    assert_gold("logits", logits, case.gold["logits_global_prompt0"], "logits")


@pytest.mark.parametrize("block", range(3))
def test_states_and_attention_of_each_block(case, caption_states, clip_states, block):
    gold, state, text = case.gold, clip_states[block], caption_states[block]
    if f"visual_layer{block}_global" not in gold:
        assert case.name == "c_linear_t12"  # this case stores no block outputs
        return
    end = case.tokens.argmax(1)
    assert_gold("sot", text[:, 0], gold[f"text_layer{block}_sot"], "layers")
    assert_gold("eot", text[np.arange(len(end)), end], gold[f"text_layer{block}_eot"], "layers")
    assert_gold("global", state.globals, gold[f"visual_layer{block}_global"], "layers")
    assert_gold("class", state.frames[:, :, 0], gold[f"visual_layer{block}_cls"], "layers")
    assert_gold("patch", state.frames[:, :, -1], gold[f"visual_layer{block}_patch48"], "layers")
    attention = state.attention.mean(dim=1)
    num_globals = state.globals.shape[1]
    to_frames = attention[..., num_globals:].unflatten(-1, (state.frames.shape[1], -1))
    prompts = (
        to_frames.shape[-1] - state.frames.shape[2]
    )  # the research code has them behind the class token
    by_kind = to_frames.tensor_split([prompts, prompts + 1], dim=-1)
    to_frames = torch.cat([by_kind[1], by_kind[0], by_kind[2]], dim=-1)
    assert_gold(
        "to_global", attention[..., :num_globals], gold[f"attn_layer{block}_to_global"], "attention"
    )
    assert_gold("to_frames", to_frames, gold[f"attn_layer{block}_to_frames"], "attention")


def test_loss_and_gradients(case, model):
    if "training" not in case.entry:
        assert case.name == "c_linear_t12"  # this case stores no training step
        return
    model.zero_grad()
    captions = model.encode_captions(torch.from_numpy(case.tokens[:2]))
    clips = model.encode_clips(torch.from_numpy(case.frames))
    loss = softmax_loss(captions, clips, Logits.of(model))
    loss.backward()
    assert_gold("loss", loss.detach(), case.gold["train_loss"], "loss")
    compared = {
        compare_gradient(name, p.grad, case)
        for name, p in model.prompts.named_parameters()
        if p.numel()
    }
    left = set(case.entry["training"]["grad_norm"]) - compared
    assert left == set(case.entry["facts"]["exactly_zero_gradient"])
    assert all(p.grad is None for p in model.backbone.parameters())


def compare_gradient(name, grad, case):
    """Compare one tensor's gradient, whole or the stored slice, and its norm; return the golden name."""
    if name == "latent":
        linear = case.config["variant"] == "linear"
        golden = "visual_prompt_embedding" if linear else "unified_prompt_embedding.weight"
        grad = grad.transpose(0, 1).flatten(1)
    else:
        ours = next(key for key in TRAINED_TENSORS if name.startswith(key))
        golden = name.replace(ours, TRAINED_TENSORS[ours])
    norm = case.entry["training"]["grad_norm"][golden]
    np.testing.assert_allclose(grad.norm(), norm, rtol=1e-4, err_msg=golden)
    if f"grad/{golden}" in case.gold:
        want, got = case.gold[f"grad/{golden}"], grad.numpy()
        got = got.reshape(want.shape)
    else:
        want, got = case.gold[f"grad_slice/{golden}"], grad.flatten(1)[:, :8].numpy()
    np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-4 * abs(want).max() + 1e-8, err_msg=golden
    )
    return golden
