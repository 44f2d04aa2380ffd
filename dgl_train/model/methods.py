"""What can be trained: DGL's prompts, their baselines, and the alternatives, each behind one name."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import Backbone, require_towers
from dgl_train.model.dgl import VISUAL_OUTPUTS, DglModel
from dgl_train.model.dual_encoder import DualEncoder, FrameMeanModel
from dgl_train.model.peft import ALTERNATIVES
from dgl_train.model.prompts import (
    LinearPrompts,
    PromptCounts,
    PromptGenerator,
    TransformerPrompts,
    UnsharedPrompts,
)

PROMPT_METHODS = ("dgl-linear", "dgl-transformer", "unshared")
METHODS = (*PROMPT_METHODS, *ALTERNATIVES)
PROJECTIONS = ("visual-to-text", "text-to-visual")
RENAMED = {"max_words": "max_tokens"}  # settings of recipes and checkpoints of earlier versions


@dataclass(frozen=True)
class ModelSettings:
    """What is needed, beside the tensors, to build a tuned model and feed it.

    The alternatives read ``method``, ``num_frames`` and ``max_tokens`` alone.
    """

    method: str
    counts: PromptCounts
    num_frames: int
    max_tokens: int
    visual_output: str = VISUAL_OUTPUTS[0]
    projection: str = PROJECTIONS[0]
    frame_positions: bool = False


@dataclass(frozen=True)
class TunedModel:
    """A model with the settings it was trained with, and the backbone's hash from before."""

    model: DualEncoder
    settings: ModelSettings
    backbone_sha256: str


def build_model(
    backbone: Backbone, settings: ModelSettings, *, recompute_blocks: bool = False
) -> TunedModel:
    """A new model; an alternative changes the backbone, prompts leave it as it is.

    Args:
        backbone: What is tuned.
        settings: How.
        recompute_blocks: See ``Tower``.

    Raises:
        ConfigError: Unknown method, settings that do not go together, or a backbone whose level of
            support is too low for them.
    """
    sha256 = backbone.digest()
    if recompute_blocks:
        for tower in require_towers(backbone, "recompute_blocks", "recompute_blocks = false"):
            tower.recompute_blocks = True
    inputs = backbone.inputs_of(settings.num_frames, settings.max_tokens)
    if settings.method in ALTERNATIVES:
        ALTERNATIVES[settings.method](backbone)
        return TunedModel(FrameMeanModel(backbone, inputs), settings, sha256)
    prompts = make_prompts(backbone, settings)
    model = DglModel(backbone, prompts, visual_output=settings.visual_output, inputs=inputs)
    return TunedModel(model, settings, sha256)


def make_prompts(backbone: Backbone, settings: ModelSettings) -> PromptGenerator:
    """A new generator of the method.

    Raises:
        ConfigError: Unknown method.
    """
    counts = settings.counts
    positions = settings.num_frames if settings.frame_positions else 0
    match settings.method:
        case "dgl-linear":
            from_text = settings.projection == "text-to-visual"
            return LinearPrompts(backbone, counts, from_text=from_text, num_positions=positions)
        case "dgl-transformer":
            return TransformerPrompts(
                backbone, counts, settings.num_frames, num_positions=positions
            )
        case "unshared":
            return UnsharedPrompts(backbone, counts, num_positions=positions)
    raise ConfigError(f"method is {settings.method!r}; it must be one of {', '.join(METHODS)}.")


def trained_parameters(model: DualEncoder) -> dict[str, nn.Parameter]:
    """What training changes, by name; tensors without entries are left out."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.numel()
    }


@torch.no_grad()
def load_trained(model: DualEncoder, tensors: dict[str, Tensor]) -> None:
    """Put trained tensors into a model built with the same settings.

    Raises:
        ConfigError: Names or shapes are others.
    """
    into = trained_parameters(model)
    if into.keys() != tensors.keys():
        differing = ", ".join(sorted(into.keys() ^ tensors.keys())[:3])
        raise ConfigError(f"the trained tensors are not those of this model: {differing} differ.")
    for name, parameter in into.items():
        if parameter.shape != tensors[name].shape:
            raise ConfigError(
                f"tensor {name} is {list(tensors[name].shape)}, expected {list(parameter.shape)}."
            )
        parameter.copy_(tensors[name])
