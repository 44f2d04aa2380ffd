"""Which open_clip models have CLIP's own architecture, and what the others have that we do not support."""

from typing import Any

CLIP_VOCABULARY = 49408


def foreign_towers(config: Any) -> list[str]:  # noqa: ANN401 - open_clip is untyped
    """Name the towers that open_clip takes from other libraries.

    Args:
        config: What ``open_clip.get_model_config`` returned.

    Returns:
        Descriptions for a person; empty if both towers are open_clip's own.
    """
    found = {
        "a TimmModel vision tower": ("vision_cfg", "timm_model_name"),
        "a HFTextEncoder text tower": ("text_cfg", "hf_model_name"),
    }
    return [
        part for part, (tower, key) in found.items() if key in ((config or {}).get(tower) or {})
    ]


def unsupported_parts(model: Any, name: str) -> list[str]:  # noqa: ANN401 - open_clip is untyped
    """Name every part of an open_clip model that differs from CLIP's architecture.

    Args:
        model: What ``open_clip.create_model`` returned.
        name: The name it was created by; its configuration tells the tokenizer.

    Returns:
        Descriptions for a person; empty if the model is supported.
    """
    if type(model).__name__ not in ("CLIP", "CustomTextCLIP"):
        return [f"the {type(model).__name__} model class"]
    visual, text = model.visual, getattr(model, "text", model)
    if type(visual).__name__ != "VisionTransformer":
        return [f"a {type(visual).__name__} vision tower"]
    if type(getattr(text, "transformer", None)).__name__ != "Transformer":
        return [f"a {type(text).__name__} text tower"]
    return [*_vision_parts(visual), *_text_parts(model, text, name)]


def _vision_parts(visual: Any) -> list[str]:  # noqa: ANN401
    preprocess = visual.preprocess_cfg
    found = {
        "attentional pooling": visual.attn_pool is not None,
        f"{visual.pool_type!r} pooling of patches": visual.pool_type != "tok",
        "a final LayerNorm after pooling": visual.final_ln_after_pool,
        "no LayerNorm before the blocks": type(visual.ln_pre).__name__ == "Identity",
        "frames that are not square": visual.grid_size[0] != visual.grid_size[1],
        f"{preprocess['resize_mode']!r} resizing": preprocess["resize_mode"] != "shortest",
        f"{preprocess['interpolation']!r} interpolation": preprocess["interpolation"] != "bicubic",
    }
    return [part for part, present in found.items() if present] + _block_parts(visual, "vision")


def _text_parts(model: Any, text: Any, name: str) -> list[str]:  # noqa: ANN401
    import open_clip

    config = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    pool = getattr(text, "pool_type", getattr(model, "text_pool_type", "argmax"))
    projection = type(text.text_projection).__name__
    found = {
        "a text tower without causal mask": text.attn_mask is None,
        f"{pool!r} pooling of the caption": pool != "argmax",
        "a class token in the text tower": getattr(text, "cls_emb", None) is not None,
        f"a {projection} text projection": projection != "Parameter",
        f"a vocabulary of {model.vocab_size} tokens": model.vocab_size != CLIP_VOCABULARY,
        "a tokenizer other than CLIP's": bool(
            config.get("hf_tokenizer_name") or config.get("tokenizer_kwargs")
        ),
    }
    return [part for part, present in found.items() if present] + _block_parts(text, "text")


def _block_parts(tower: Any, which: str) -> list[str]:  # noqa: ANN401
    block = tower.transformer.resblocks[0]
    if type(block).__name__ != "ResidualAttentionBlock":
        return [f"{type(block).__name__} blocks in the {which} tower"]
    if type(block.ls_1).__name__ != "Identity":
        return [f"LayerScale in the {which} tower"]
    return []
