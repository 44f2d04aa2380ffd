"""Load any dual encoder that open_clip builds: by model name, from a folder in its format, or from the hub.

A CLIP of the original architecture becomes towers that can be attended in; of any other model both encoders
are taken as they are.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.plain_path import plain_path
from dgl_train.model.backbones.backbone import Backbone, BackboneSource, Facts
from dgl_train.model.backbones.clip import Kind, clip_backbone
from dgl_train.model.backbones.clip_architecture import foreign_parts
from dgl_train.model.backbones.downloaded import name_without_download, tokenizer_file
from dgl_train.model.backbones.licences import licence_in, published_licence
from dgl_train.model.backbones.open_clip_encoders import (
    TransformerText,
    WholeText,
    WholeVision,
    exportable,
)
from dgl_train.model.backbones.open_clip_inputs import FindFile, frames_of, tokenizer_of

SIGMOID_SCALE = 1000.0  # SigLIP's temperature is not clamped; a limit that it does not reach


@dataclass(frozen=True)
class Built:
    """A model as open_clip builds it, and what it wants."""

    model: Any
    config: dict[str, Any]  # model_cfg
    frames: FrameSpec
    tokenizer: Tokenizer
    licence: str


def load_open_clip(source: BackboneSource) -> Backbone:
    """Load a backbone through open_clip.

    The network is asked for nothing but weights that are named and have not been downloaded yet.

    Raises:
        ConfigError: Unknown model or weights, or one that wants its inputs in a way we do not know.
    """
    built = _built(source)
    if not foreign_parts(built.model, built.tokenizer.spec):
        return _towers(built, source)
    return _whole(built, source)


def _towers(built: Built, source: BackboneSource) -> Backbone:
    """CLIP's own architecture."""
    model = built.model
    block = model.visual.transformer.resblocks[0]
    kind = Kind(
        vision_heads=block.attn.num_heads,
        text_heads=_text_of(model).transformer.resblocks[0].attn.num_heads,
        quick_gelu=type(block.mlp.gelu).__name__ == "QuickGELU",
        eps=model.visual.ln_post.eps,
        frames=built.frames,
        licence=built.licence,
    )
    state = {name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()}
    return clip_backbone(state, source, kind)


def _whole(built: Built, source: BackboneSource) -> Backbone:
    """Both encoders as open_clip has them."""
    model: Any = exportable(built.model)
    texts = built.tokenizer.spec
    text, own = _text_of(model), built.config["text_cfg"]
    plain = hasattr(text, "transformer") and hasattr(text, "ln_final")
    if plain and not (own.get("embed_cls") or own.get("use_pad_mask")):
        text = TransformerText(text, texts)
    elif text is model:
        raise ConfigError(f"backbone {source.name!r} has a text encoder that is not known here.")
    else:
        text = WholeText(text)
    bias = model.logit_bias
    facts = Facts(
        source,
        InputSpec(built.frames, texts),
        built.tokenizer,
        int(built.config["embed_dim"]),
        loss="softmax" if bias is None else "sigmoid",
        max_logit_scale=100.0 if bias is None else SIGMOID_SCALE,
        licence=built.licence,
    )
    return Backbone(
        WholeVision(model.visual),
        text,
        facts,
        logit_scale=float(model.logit_scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
    )


def _built(source: BackboneSource) -> Built:
    try:
        with _named(source) as (name, pretrained):
            config = _config(name)
            _require_own_text(config)
            _require_activation(name, pretrained, config)
            model = _created(name, pretrained)
            frames = frames_of(_preprocess(model, name, pretrained), model.visual.image_size)
            tokenizer = tokenizer_of(config["text_cfg"], _finder(source, config))
            licence = _licence(source, name)
    except ConfigError as error:
        raise ConfigError(f"backbone {source.name!r} is not supported: {error}.") from error
    except Exception as error:  # open_clip, timm, torch and safetensors raise many kinds
        raise ConfigError(
            f"backbone {source.name!r} with pretrained {source.pretrained!r} does not load: "
            f"{reason_of(error)}. Give a model name of open_clip.list_models(), a folder in open_clip's "
            "format, or hf-hub: and a repository in it."
        ) from error
    return Built(model.eval(), config, frames, tokenizer, licence)


@contextmanager
def _named(source: BackboneSource) -> Iterator[tuple[str, str]]:
    """What open_clip is to be asked for: paths that it reads, and downloads that are there already."""
    with ExitStack() as links:
        name = name_without_download(source.name, source.pretrained)
        if Path(source.name).is_dir():
            name = f"local-dir:{links.enter_context(plain_path(Path(source.name)))}"
        pretrained = source.pretrained
        if Path(pretrained).is_file():
            pretrained = str(links.enter_context(plain_path(Path(pretrained))))
        yield name, pretrained


def _config(name: str) -> dict[str, Any]:
    import open_clip

    if (config := open_clip.get_model_config(name)) is None:
        raise ValueError(f"open_clip knows no model {name!r}")
    return dict(config)


def _require_own_text(config: dict[str, Any]) -> None:
    """Building another library's text encoder asks the network, also where a folder names it.

    Raises:
        ConfigError: The text encoder comes from transformers.
    """
    if other := config["text_cfg"].get("hf_model_name"):
        raise ConfigError(f"its text encoder, {other}, is built by the library transformers")


def _require_activation(name: str, pretrained: str, config: dict[str, Any]) -> None:
    """Weights trained with QuickGELU want a model with it.

    Raises:
        ConfigError: It has none: open_clip only warns, and embeddings would be wrong.
    """
    import open_clip

    tag = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained) if pretrained else None
    if tag and tag.get("quick_gelu") and not config.get("quick_gelu"):
        raise ConfigError(
            f"the weights {pretrained!r} were trained with another activation than it has; "
            f"take {name}-quickgelu"
        )


def _finder(source: BackboneSource, config: dict[str, Any]) -> FindFile:
    """Where the tokenizer's files are: in the folder, or in the repository that the model names."""
    if (folder := Path(source.name)).is_dir():
        return lambda file: folder / file if (folder / file).is_file() else None
    return partial(tokenizer_file, config["text_cfg"].get("hf_tokenizer_name"))


def _licence(source: BackboneSource, name: str) -> str:
    """Of published weights; random numbers, and files that do not say, have none that we know."""
    name = name_without_download(name, "")  # by now it is there
    if name.startswith("local-dir:"):
        return licence_in(Path(name.removeprefix("local-dir:")))
    return published_licence(name, source.pretrained)


def _created(name: str, pretrained: str) -> Any:  # noqa: ANN401 - open_clip is untyped
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a model without pretrained weights is the same each time
        of_hub = name.startswith("hf-hub:")  # whose weights may fail to arrive in silence
        return open_clip.create_model(
            name, pretrained=pretrained or None, require_pretrained=of_hub
        )


def _preprocess(model: Any, name: str, pretrained: str) -> dict[str, Any]:  # noqa: ANN401
    """How pictures are resized and normalised: without a tag of its own, as the model's first tag says.

    open_clip then reports OpenAI's pixels for every model.
    """
    import open_clip

    tags = [pretrained, *open_clip.list_pretrained_tags_by_model(name)]
    listed: dict[str, Any] = next(
        (cfg for tag in tags if (cfg := open_clip.get_pretrained_cfg(name, tag))), {}
    )
    known = {
        key: listed[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in listed
    }
    return {**model.visual.preprocess_cfg, **known}


def _text_of(model: Any) -> Any:  # noqa: ANN401 - open_clip is untyped
    return getattr(model, "text", model)
