"""Load any dual encoder that open_clip builds: by model name, from a folder in its format, or from the hub.

An encoder made of blocks like ours becomes a tower, which can be attended in; any other is taken as it is.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.plain_path import plain_path
from dgl_train.model.backbones.backbone import Backbone, BackboneSource, Facts
from dgl_train.model.backbones.downloaded import (
    HUB,
    HubAwayError,
    name_without_download,
    tokenizer_file,
)
from dgl_train.model.backbones.licences import licence_in, published_licence
from dgl_train.model.backbones.open_clip_encoders import (
    WholeText,
    WholeVision,
    exportable,
    text_of,
)
from dgl_train.model.backbones.open_clip_inputs import FindFile, frames_of, tokenizer_of
from dgl_train.model.backbones.open_clip_towers import NoTowerError, text_tower, vision_tower
from dgl_train.model.backbones.timm_towers import timm_tower

SAME = 1e-4  # of the norm of embeddings: rounding, after many layers
_TEXTS = ["a", "two small dogs run over a bridge at night"]
# A part that is named, that is missing, or that is of another shape.
_NO_TOWER = (NoTowerError, AttributeError, RuntimeError)
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
    model, tokenizer = built.model, built.tokenizer
    whys: list[str] = []
    vision = _vision_of(model.visual, built.frames, whys)
    try:
        text = _text_of(text_of(model), tokenizer, whys)
    except IndexError as error:
        raise ConfigError(
            f"backbone {source.name!r} is not supported: its text encoder knows fewer tokens than its "
            "tokenizer makes. Give the tokenizer that it was trained with."
        ) from error
    if isinstance(text, WholeText):  # which reads whole rows alone
        whole = replace(tokenizer.spec, pad_to=tokenizer.spec.max_tokens)
        tokenizer = tokenizer.fed_as(whole)
    bias = model.logit_bias
    facts = Facts(
        source,
        InputSpec(built.frames, tokenizer.spec),
        tokenizer,
        int(built.config["embed_dim"]),
        loss="softmax" if bias is None else "sigmoid",
        max_logit_scale=100.0 if bias is None else SIGMOID_SCALE,
        licence=built.licence,
        no_prompts=" and ".join(whys),
    )
    return Backbone(
        vision,
        text,
        facts,
        logit_scale=float(model.logit_scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
    )


@torch.no_grad()
def _vision_of(visual: Any, frames: FrameSpec, whys: list[str]) -> nn.Module:  # noqa: ANN401
    """A tower, or the encoder as it is, with the reason."""
    random = torch.Generator().manual_seed(0)
    try:
        match type(visual).__name__:
            case "VisionTransformer":
                tower = vision_tower(visual)
            case "TimmModel":
                tower = timm_tower(visual)
            case other:
                raise NoTowerError(f"a {other} image encoder")
        pictures = torch.randn(2, 3, frames.size, frames.size, generator=random)
        _require_equal(tower, WholeVision(visual), pictures)
    except _NO_TOWER as why:
        whys.append(reason_of(why))
        return WholeVision(exportable(visual))
    return tower


@torch.no_grad()
def _text_of(text: Any, tokenizer: Tokenizer, whys: list[str]) -> nn.Module:  # noqa: ANN401
    """The same of texts: short ones as the tokenizer makes them, which open_clip wants as whole rows."""
    texts = tokenizer.spec
    rows = torch.from_numpy(tokenizer(_TEXTS).ids).long()
    whole = functional.pad(rows, (0, texts.max_tokens - rows.shape[1]), value=texts.pad_id)
    try:
        tower = text_tower(text, texts)
        _require_equal(tower, WholeText(text), rows, whole)
    except _NO_TOWER as why:
        whys.append(reason_of(why))
        return WholeText(exportable(text))
    return tower


def _require_equal(
    tower: nn.Module, original: nn.Module, inputs: Tensor, its_inputs: Tensor | None = None
) -> None:
    """A part that we know nothing of would change what comes out.

    Raises:
        NoTowerError: The tower gives something else than its original.
    """
    gold = original(inputs if its_inputs is None else its_inputs)
    off = float((tower(inputs) - gold).norm() / gold.norm())
    if not off < SAME:
        raise NoTowerError(f"parts that are not known here, by which it is off by {off:.1e}")


def _built(source: BackboneSource) -> Built:
    try:
        _require_weights(source)
        with _named(source) as (name, pretrained):
            config = _config(name)
            _require_own_text(config)
            model = _created(name, pretrained)
            frames = frames_of(_preprocess(model, name, pretrained), model.visual.image_size)
            tokenizer = tokenizer_of(config["text_cfg"], _finder(source, config))
            licence = _licence(source, name)
    except ConfigError as error:
        raise ConfigError(f"backbone {source.name!r} is not supported: {error}.") from error
    except HubAwayError as error:
        raise ConfigError(
            f"backbone {source.name!r} is not here: {error}. "
            "Connect to the network once, or give a folder."
        ) from error
    except Exception as error:  # open_clip, timm, torch and safetensors raise many kinds
        raise ConfigError(
            f"backbone {source.name!r} with pretrained {source.pretrained!r} does not load: "
            f"{reason_of(error)}. Give a model name of open_clip.list_models(), a folder in open_clip's "
            "format or of a BLIP, or hf-hub: and such a repository."
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


def _require_weights(source: BackboneSource) -> None:
    """Weights that are named are known, and those trained with QuickGELU want a model with it.

    Raises:
        ConfigError: They are not known, or it has none: open_clip only warns, and embeddings would be wrong.
    """
    import open_clip

    name, pretrained = source.name, source.pretrained
    if not pretrained or Path(pretrained).is_file() or name not in open_clip.list_models():
        return
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(
            f"the weights {pretrained!r} are neither a file nor a tag; its tags are: {known}"
        )
    if tag.get("quick_gelu") and not open_clip.get_model_config(name).get("quick_gelu"):
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
        of_hub = name.startswith(HUB)  # whose weights may fail to arrive in silence
        try:
            return open_clip.create_model(
                name, pretrained=pretrained or None, require_pretrained=of_hub
            )
        except (AttributeError, KeyError) as error:  # looking for a tensor that is not there
            raise ConfigError(
                "its weights are of another model than its configuration says"
            ) from error


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
