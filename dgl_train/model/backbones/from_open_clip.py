"""Load a CLIP through open_clip: by model name, from a folder in its format, or from the hub."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.plain_path import plain_path
from dgl_train.model.backbones.backbone import Backbone, BackboneSource
from dgl_train.model.backbones.clip import Kind, clip_backbone


def load_clip(source: BackboneSource) -> Backbone:
    """Load a CLIP through open_clip and check that it is one we support.

    The network is asked for nothing but weights that are named and have not been downloaded yet.

    Raises:
        ConfigError: Unknown model or weights, or a model that is not of CLIP's architecture.
    """
    model = _supported_model(source)
    block, preprocess = model.visual.transformer.resblocks[0], model.visual.preprocess_cfg
    kind = Kind(
        vision_heads=block.attn.num_heads,
        text_heads=_text_tower(model).transformer.resblocks[0].attn.num_heads,
        quick_gelu=type(block.mlp.gelu).__name__ == "QuickGELU",
        eps=model.visual.ln_post.eps,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )
    state = {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}
    return clip_backbone(state, source, kind)


def _supported_model(source: BackboneSource) -> Any:  # noqa: ANN401 - open_clip is untyped
    import open_clip

    from dgl_train.model.backbones.downloaded import name_without_download
    from dgl_train.model.backbones.openclip_support import foreign_towers, unsupported_parts

    folder = Path(source.name).is_dir()
    try:
        with ExitStack() as links:
            name, pretrained = (
                name_without_download(source.name, source.pretrained),
                source.pretrained,
            )
            if folder:
                name = f"local-dir:{links.enter_context(plain_path(Path(name)))}"
            if Path(pretrained).is_file():
                pretrained = str(links.enter_context(plain_path(Path(pretrained))))
            # Not even built: their libraries may ask the network, also where a folder names them.
            foreign = foreign_towers(open_clip.get_model_config(name))
            model = None if foreign else _created_model(name, pretrained)
    except Exception as error:  # open_clip, torch and safetensors raise many kinds
        raise ConfigError(
            f"backbone {source.name!r} with pretrained {source.pretrained!r} does not load: "
            f"{reason_of(error)}. Give a model name of open_clip.list_models(), or a folder in "
            "open_clip's format."
        ) from error
    if missing := foreign or unsupported_parts(model, source.name if folder else name):
        raise ConfigError(
            f"backbone {source.name!r} is not supported yet: it has {', '.join(missing)}. "
            "Supported: ViT with class token and causal text tower, such as ViT-B-32-quickgelu."
        )
    return model


def _created_model(name: str, pretrained: str) -> Any:  # noqa: ANN401
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a model without pretrained weights is the same each time
        of_hub = name.startswith("hf-hub:")  # whose weights may fail to arrive in silence
        return open_clip.create_model(
            name, pretrained=pretrained or None, require_pretrained=of_hub
        )


def _text_tower(model: Any) -> Any:  # noqa: ANN401 - open_clip is untyped
    return getattr(model, "text", model)
