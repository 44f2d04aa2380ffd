"""What dgl-bench encode measures: a model, the same model exported, and what both are asked."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dgl_bench.blip import BLIP, TRANSFORMERS, TransformersBlip, write_random_blip
from dgl_bench.command import say
from dgl_bench.random_backbone import write_random
from dgl_export.calibration import Calibration, made_calibration
from dgl_export.fold import FoldedModel, fold
from dgl_export.folded_text_encoder import TextEncoder
from dgl_export.parity import drifting_patterns
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_runtime.bundle.manifest import Graph
from dgl_train.model.backbones.backbone import Backbone, BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.dgl import DglModel
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.prompts import LinearPrompts, PromptCounts, TransformerPrompts

CAPTION = "a man is playing the guitar on a stage"
PADDED_LENGTH = 32  # the research code pads every caption to this
SEED = 0
QUERY, CLIP = "query", "clip"
TASKS = (QUERY, CLIP)
UNFOLDED, FOLDED, OPEN_CLIP = "torch, unfolded", "torch, folded", "open_clip"
ZERO_SHOT = "zero-shot"  # the method of a backbone as it is
_TABLES = ("token_embedding", "positions", "token_embedding.weight")  # ours, and open_clip's


@dataclass(frozen=True)
class Inputs:
    """Queries and clips, the same for all variants."""

    tokens: Tensor  # int32 [B, L], as long as the exported text encoder wants them
    padded: Tensor  # int64 [B, L], as long as others pad them
    frames: Tensor  # uint8 [B, F, 3, S, S]

    def batch(self, size: int) -> "Inputs":
        """The first query and clip, this many times."""
        tokens, padded = (part[:1].repeat(size, 1) for part in (self.tokens, self.padded))
        return Inputs(tokens, padded, self.frames[:1].repeat(size, 1, 1, 1, 1))

    def sizes(self, task: str) -> dict[str, int]:
        """Of one query or clip, by what a table calls it."""
        if task == QUERY:
            return {"tokens": self.tokens.shape[1], "padded to": self.padded.shape[1]}
        return {"frames": self.frames.shape[1], "pixels": self.frames.shape[-1]}


@dataclass(frozen=True)
class Work:
    """What one call of a folded encoder cannot do without."""

    flop: int  # a multiply-add is 2
    weights: int  # numbers read, whatever their size


@dataclass(frozen=True)
class InTorch:
    """Both encoders of a model in torch."""

    name: str  # in tables
    text_encoder: nn.Module
    clip_encoder: nn.Module
    padded: bool  # whether texts are padded


@dataclass(frozen=True)
class Subject:
    """A model in torch and exported in float32, and what it is asked."""

    in_torch: tuple[InTorch, ...]  # all are compared with the first; the last is compiled
    inputs: Inputs
    work: dict[str, Work]  # task -> of one query or clip
    folder: Path
    graphs: list[Graph]  # of the folder
    calibration: Calibration  # made captions and clips, of the sizes that are timed


class Encoder(nn.Module):
    """One encoder of a model that has both, as a module."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, values: Tensor) -> Tensor:
        """What the model's method makes of token ids or frames."""
        embeddings: Tensor = getattr(self.model, self.method)(values)
        return embeddings


class OpenClipModel(nn.Module):
    """open_clip's own model, fed as open_clip feeds it; a clip is the mean of its unit frames.

    Args:
        model: What ``open_clip.create_model`` gave.
        mean: Of its pixels, [3, 1, 1].
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Tensor, std: Tensor) -> None:  # noqa: ANN401 - untyped
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], padded -> unit-norm embeddings [B, E]."""
        return F.normalize(self.model.encode_text(tokens), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """uint8 [B, F, 3, S, S] -> unit-norm embeddings [B, E]."""
        pictures = (frames.flatten(0, 1).float() / 255 - self.mean) / self.std
        by_frame = F.normalize(self.model.encode_image(pictures), dim=-1)
        return F.normalize(by_frame.unflatten(0, frames.shape[:2]).mean(dim=1), dim=-1)


def load(name: str, pretrained: str, folder: Path) -> Backbone:
    """The backbone that ``--backbone`` names; a model of open_clip without weights gets random numbers.

    Args:
        name: As dgl-train's, or ``BLIP-B-384``, which has random numbers.
        pretrained: A tag, a file, or nothing.
        folder: To be made, where there are random numbers.

    Raises:
        ConfigError: It does not load.
    """
    if name == BLIP:
        name = str(write_random_blip(folder))
    elif not pretrained and name in open_clip.list_models():
        name = str(write_random(name, folder))
    return load_backbone(BackboneSource(name, pretrained))


def make_subject(backbone: Backbone, method: str, num_frames: int, folder: Path) -> Subject:
    """Make a model of a method, and export it into an empty folder."""
    longest = backbone.facts.inputs.texts.max_tokens
    if method == ZERO_SHOT:
        folded = fold(FrameMeanModel(backbone))
        in_torch: tuple[InTorch, ...] = (_both(*others_model(backbone)),)
    else:
        model, longest = make_model(backbone, method, num_frames), min(PADDED_LENGTH, longest)
        folded = fold(model)
        own = InTorch(FOLDED, folded.text_encoder, folded.clip_encoder, padded=False)
        in_torch = (_both(UNFOLDED, model), own)
    inputs = make_inputs(backbone, num_frames, longest)
    say(f"{method}: ONNX export")
    query = work_of(folded.text_encoder, inputs.tokens)
    work = {QUERY: query, CLIP: work_of(folded.clip_encoder, inputs.frames)}
    wanted = backbone.inputs_of(num_frames, longest)
    calibration = made_calibration(wanted.frames, backbone.facts.tokenizer.fed_as(wanted.texts))
    any_length = wanted.texts.pad_to is None
    graphs = export(folded, inputs, folder, any_length=any_length)
    return Subject(in_torch, inputs, work, folder, graphs, calibration)


def _both(name: str, model: nn.Module) -> InTorch:
    """A model that pads texts, in torch."""
    return InTorch(
        name, Encoder(model, "encode_captions"), Encoder(model, "encode_clips"), padded=True
    )


def others_model(backbone: Backbone) -> tuple[str, nn.Module]:
    """The same numbers in open_clip's own model, or transformers' of a BLIP, and whose it is."""
    if backbone.facts.inputs.texts.clean == "blip":
        folder = backbone.facts.source.name
        return TRANSFORMERS, TransformersBlip(folder, backbone.mean, backbone.std)
    return OPEN_CLIP, open_clip_model(backbone)


def open_clip_model(backbone: Backbone) -> OpenClipModel:
    """The same numbers in open_clip's own model."""
    source = backbone.facts.source
    name = f"local-dir:{source.name}" if Path(source.name).is_dir() else source.name
    model = open_clip.create_model(name, pretrained=source.pretrained or None).eval()
    return OpenClipModel(model, backbone.mean, backbone.std)


def work_of(encoder: nn.Module, values: Tensor) -> Work:
    """The matrix products of one call, and the weights it reads: of the text tables one row a token."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(values)
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    is_text = values.dim() == 2
    tables = [tensors.pop(name) for name in list(tensors) if is_text and name.endswith(_TABLES)]
    tokens = values.shape[1] - (encoder.dropped if isinstance(encoder, TextEncoder) else 0)
    rows = sum(tokens * table.shape[1] for table in tables)
    return Work(counter.get_total_flops(), rows + sum(one.numel() for one in tensors.values()))


def make_inputs(backbone: Backbone, num_frames: int, padded_to: int) -> Inputs:
    """The fixed caption, and a clip of coarse patterns of colour."""
    tokenizer, frames = backbone.facts.tokenizer, backbone.facts.inputs.frames
    padding = tokenizer.fed_as(replace(tokenizer.spec, max_tokens=padded_to, pad_to=padded_to))
    tokens, padded = (torch.from_numpy(one([CAPTION]).ids) for one in (tokenizer, padding))
    pixels = drifting_patterns(1, num_frames, frames.size)
    return Inputs(tokens, padded.long(), torch.from_numpy(pixels))


def make_model(backbone: Backbone, method: str, num_frames: int) -> DglModel:
    """A model with the paper's prompt counts and freshly drawn prompts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if method == "dgl-linear":
            return DglModel(backbone, LinearPrompts(backbone, PromptCounts())).eval()
        return DglModel(backbone, TransformerPrompts(backbone, PromptCounts(), num_frames)).eval()


def export(folded: FoldedModel, inputs: Inputs, folder: Path, *, any_length: bool) -> list[Graph]:
    """Write the float32 graphs."""
    # Every dimension that stays free must be above 1 in the example.
    repeats = 2 if folded.any_frames and inputs.frames.shape[1] == 1 else 1
    tokens, frames = inputs.tokens.repeat(2, 1), inputs.frames.repeat(2, repeats, 1, 1, 1)
    texts, clips = folded.text_encoder, folded.clip_encoder
    with redirect_stdout(sys.stderr):
        return [
            write_text_encoder(texts, tokens, folder, any_length=any_length),
            write_clip_encoder(clips, frames, folder, any_frames=folded.any_frames),
        ]
