"""Which open_clip models have CLIP's own architecture, and what the others have that it has not."""

from typing import Any

from dgl_runtime.bundle.input_spec import TextSpec, clip_texts


def foreign_parts(model: Any, texts: TextSpec) -> list[str]:  # noqa: ANN401 - open_clip is untyped
    """Name every part of an open_clip model that differs from CLIP's architecture.

    Args:
        model: What ``open_clip.create_model`` returned.
        texts: How it wants its texts.

    Returns:
        Descriptions for a person; empty if it is a CLIP that prompts can be put into.
    """
    if type(model).__name__ not in ("CLIP", "CustomTextCLIP"):
        return [f"the {type(model).__name__} model class"]
    visual, text = model.visual, getattr(model, "text", model)
    if type(visual).__name__ != "VisionTransformer":
        return [f"a {type(visual).__name__} vision tower"]
    if type(getattr(text, "transformer", None)).__name__ != "Transformer":
        return [f"a {type(text).__name__} text tower"]
    return [*_vision_parts(visual), *_text_parts(model, text, texts)]


def _vision_parts(visual: Any) -> list[str]:  # noqa: ANN401
    found = {
        "attentional pooling": visual.attn_pool is not None,
        f"{visual.pool_type!r} pooling of patches": visual.pool_type != "tok",
        "a final LayerNorm after pooling": visual.final_ln_after_pool,
        "no LayerNorm before the blocks": type(visual.ln_pre).__name__ == "Identity",
        "frames that are not square": visual.grid_size[0] != visual.grid_size[1],
    }
    return [part for part, present in found.items() if present] + _block_parts(visual, "vision")


def _text_parts(model: Any, text: Any, texts: TextSpec) -> list[str]:  # noqa: ANN401
    pool = getattr(text, "pool_type", getattr(model, "text_pool_type", "argmax"))
    projection = type(text.text_projection).__name__
    found = {
        "a text tower without causal mask": text.attn_mask is None,
        f"{pool!r} pooling of the caption": pool != "argmax",
        "a class token in the text tower": getattr(text, "cls_emb", None) is not None,
        f"a {projection} text projection": projection != "Parameter",
        "a tokenizer other than CLIP's": texts != clip_texts(texts.max_tokens),
    }
    return [part for part, present in found.items() if present] + _block_parts(text, "text")


def _block_parts(tower: Any, which: str) -> list[str]:  # noqa: ANN401
    block = tower.transformer.resblocks[0]
    if type(block).__name__ != "ResidualAttentionBlock":
        return [f"{type(block).__name__} blocks in the {which} tower"]
    if type(block.ls_1).__name__ != "Identity":
        return [f"LayerScale in the {which} tower"]
    if getattr(block.mlp.gelu, "approximate", "none") != "none":
        return [f"an approximate GELU in the {which} tower"]
    return []
