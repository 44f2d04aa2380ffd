"""Small models of every family that open_clip builds, as folders in its format, with random numbers."""

import json
from functools import partial

import open_clip
import tokenizers
import torch
from safetensors.torch import save_file
from timm.layers import HybridEmbed
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

SENTENCES = [
    "a red circle moves left over a dark background", "a dog jumps into the lake",
    "two people are cooking in a kitchen", "the bee", "snow falls on 12 cars, slowly!",
]  # fmt: skip
PIXELS = {
    "openai": {},
    "half": {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
    "bare": {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"},
}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
BOTH_WAYS = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def tiny_vit(pretrained=False, **told):
    """SigLIP's image encoder, small."""
    told = {"class_token": False, "global_pool": "map", **kept(told)}
    return VisionTransformer(**SMALL, **told)


def tiny_hybrid(pretrained=False, **told):
    """MobileCLIP-B's image encoder, small: a stem of convolutions, a class token without a place."""
    stem = ConvStem(
        channels=(8, 8, 32), stride=(4, 2, 1), kernel_size=(4, 2, 1), padding=0, act_layer=nn.GELU
    )
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return VisionTransformer(
        **SMALL | {"patch_size": 1}, embed_layer=embed, no_embed_class=True, **kept(told)
    )


def tiny_pe(pretrained=False, **told):
    """PE-Core's image encoder, small."""
    return Eva(
        **SMALL, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
        ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=4,
        attn_pool_mlp_ratio=4.0, norm_layer=partial(nn.LayerNorm, eps=1e-5), **kept(told),
    )  # fmt: skip


def tiny_eva02(pretrained=False, **told):
    """EVA02's image encoder, small."""
    return Eva(
        **SMALL, qkv_fused=False, mlp_ratio=4 * 2 / 3, swiglu_mlp=True, scale_mlp=True,
        scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(5, 5), init_values=0.3, **kept(told),
    )  # fmt: skip


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def kept(told):
    """What timm passes on to a model."""
    return {name: told[name] for name in ("num_classes", "global_pool") if name in told}


for model in (tiny_vit, tiny_hybrid, tiny_pe, tiny_eva02):
    register_model(model)


def timm(name, size, **more):
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size, **more}


FAMILIES = {
    "clip": ({"vision_cfg": VIT, "text_cfg": TEXT}, "openai"),
    "clip-quickgelu-squash": ({"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True}, "half"),
    "layer-scale": (
        {"vision_cfg": {**VIT, "ls_init_value": 0.3}, "text_cfg": {**TEXT, "ls_init_value": 0.3}},
        "openai",
    ),
    "mean-of-patches": (
        {"vision_cfg": {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
         "text_cfg": TEXT},
        "openai",
    ),
    "attentional-pool": (
        {"vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2}, "text_cfg": TEXT},
        "openai",
    ),
    "resnet": (
        {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT},
        "openai",
    ),
    "coca": (
        {"vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
         "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True}, "custom_text": True,
         "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2}},
        "openai",
    ),
    "siglip": (
        {"vision_cfg": timm("tiny_vit", 32, timm_pool="map", timm_proj="none"), "custom_text": True,
         "init_logit_bias": -10, "embed_dim": 32,
         "text_cfg": {**TEXT, **BOTH_WAYS, "hf_tokenizer_name": "unigram",
                      "tokenizer_kwargs": {"clean": "canonicalize"},
                      "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}},
        "half",
    ),
    "pe": (
        {"vision_cfg": timm("tiny_pe", 32, timm_pool="map", timm_proj=None),
         "custom_text": True, "text_cfg": TEXT},
        "half",
    ),
    "eva02": (
        {"vision_cfg": timm("tiny_eva02", 32, timm_pool="token", timm_proj=None),
         "custom_text": True, "text_cfg": TEXT},
        "openai",
    ),
    "mobileclip-b": (
        {"vision_cfg": timm("tiny_hybrid", 32, timm_pool="token", timm_proj=None), "custom_text": True,
         "text_cfg": TEXT},
        "bare",
    ),
    "mobileclip-s": (
        {"vision_cfg": timm("fastvit_t8", 64, timm_pool="avg", timm_proj=None), "custom_text": True,
         "text_cfg": {**TEXT, "no_causal_mask": True}},
        "bare",
    ),
    "registers": (
        {"vision_cfg": timm("test_vit3", 160, timm_pool="map", timm_proj="none"), "text_cfg": TEXT,
         "embed_dim": 96},
        "half",
    ),
    "convnext": (
        {"vision_cfg": timm("test_convnext", 64, timm_pool="", timm_proj="mlp"), "text_cfg": TEXT},
        "openai",
    ),
    "metaclip2": (
        {"vision_cfg": VIT,
         "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "roberta"}},
        "openai",
    ),
    "causal-read-last": (
        {"vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "last"}}, "openai",
    ),
    "no-start": (
        {"vision_cfg": VIT,
         "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 1, "hf_tokenizer_name": "unigram"}},
        "openai",
    ),
    "other-blocks": (
        {"vision_cfg": VIT, "text_cfg": {**TEXT, "proj_bias": True, "block_type": "custom"}},
        "openai",
    ),
    "clipa": (
        {"vision_cfg": {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
         "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last",
                      "hf_tokenizer_name": "wordpiece",
                      "tokenizer_kwargs": {"strip_sep_token": True}}},
        "half",
    ),
}  # fmt: skip


def write_open_clip(folder, family):
    """A folder that ``--backbone`` takes; every tensor is random, biases and norms too."""
    config, pixels = FAMILIES[family]
    config = {"embed_dim": 24, **config}
    folder.mkdir()
    if kind := config["text_cfg"].get("hf_tokenizer_name"):
        inner = small_tokenizer(kind)
        inner.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD[kind]}
        if kind == "wordpiece":
            settings["sep_token"] = "[SEP]"
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        vocab_size = inner.get_vocab_size()
        config = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": vocab_size}}
    told = {"model_cfg": config, "preprocess_cfg": PIXELS[pixels]}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model(f"local-dir:{folder}")
        state = {name: random_like(name, one) for name, one in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def random_like(name, tensor):
    """Small numbers around what a tensor holds; variances stay above zero."""
    if not tensor.is_floating_point() or name in ("logit_scale", "logit_bias"):
        return tensor.clone()
    moved = tensor + 0.05 * torch.randn_like(tensor)
    return (moved.abs() + 0.5 if name.endswith("running_var") else moved).contiguous()


PAD = {"unigram": "</s>", "roberta": "<pad>", "wordpiece": "[PAD]"}


def small_tokenizer(kind):
    """A vocabulary of a published kind, trained on a few sentences: the real ones need a download."""
    if kind == "unigram":  # T5's: an end token alone
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        )
        ends = ("$A </s>", [("</s>", 1)])
    elif kind == "roberta":
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>"
        )
        ends = ("<s> $A </s>", [("<s>", 0), ("</s>", 2)])
    else:
        inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        )
        ends = ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)])
    inner.train_from_iterator(SENTENCES * 20, trainer)
    template, tokens = ends
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return inner
