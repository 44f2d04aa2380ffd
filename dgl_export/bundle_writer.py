"""Write a bundle: fold, export, parity gate, manifest. A failed export leaves nothing."""

import math
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from dgl_export.fold import fold
from dgl_export.parity import make_golden, measure
from dgl_export.to_onnx import write_captions, write_clips
from dgl_runtime.bundle import (
    GOLDEN,
    MANIFEST,
    SCHEMA_VERSION,
    TOKENIZER,
    Manifest,
    Source,
    sha256_of,
)
from dgl_runtime.engines import open_engine
from dgl_runtime.errors import ExportError
from dgl_train.model import DglModel, RetrievalModel
from dgl_train.prompts import Prompts
from dgl_train.vocabulary import clip_tokenizer

SAMPLING = "centres of equal segments"


@dataclass(frozen=True)
class ExportRequest:
    """What to export."""

    model: RetrievalModel
    method: str
    num_frames: int
    max_words: int
    checkpoint: str
    checkpoint_sha256: str


def write_bundle(request: ExportRequest, out: Path) -> Manifest:
    """Export a model into a new folder.

    The bundle is made in a temporary folder beside ``out`` and renamed when the parity gate has passed.

    Raises:
        ExportError: ``out`` exists, or the gate failed.
        OSError: The disk is full or cannot be written.
    """
    if out.exists():
        raise ExportError(f"{out} exists already. Give a new folder to --out, or delete it first.")
    context = request.model.backbone.context_length
    if request.max_words > context:
        raise ExportError(
            f"max_words is {request.max_words}, but the backbone reads captions of {context} tokens "
            f"at most. Give --max-words {context} or less."
        )
    making = out.parent / f".{out.name}.{os.getpid()}"
    try:
        making.mkdir(parents=True)
        manifest = _fill(request, making)
        (making / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _fill(request: ExportRequest, folder: Path) -> Manifest:
    model, tokenizer = request.model, clip_tokenizer()
    backbone = model.backbone
    golden = make_golden(model, tokenizer, request.num_frames, request.max_words)
    golden.save(folder / GOLDEN)
    tokenizer.save(folder / TOKENIZER)
    folded = fold(model, start_token=tokenizer.start_id)
    captions = write_captions(folded.captions, torch.from_numpy(golden.tokens[:2]), folder)
    frames = torch.from_numpy(golden.frames[:2])
    any_frames = not _is_bound_to_its_frames(model)
    clips = write_clips(folded.clips, _several(frames), folder, any_frames=any_frames)
    engines = [
        open_engine(folder / graph.file, device="cpu", threads=0) for graph in (captions, clips)
    ]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        format="onnx",
        precision="fp32",
        method=request.method,
        backbone=backbone.source.name,
        backbone_sha256=backbone.digest(),
        embed_dim=backbone.embed_dim,
        num_frames=request.num_frames,
        frame_size=backbone.frame_size,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
        sampling=SAMPLING,
        max_words=request.max_words,
        logit_scale=math.exp(backbone.logit_scale.item()),
        captions=captions,
        clips=clips,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        parity=measure(golden, *engines),
        quality=None,
        source=Source(request.checkpoint, request.checkpoint_sha256, version("dgl-retrieval")),
    )


def _is_bound_to_its_frames(model: RetrievalModel) -> bool:
    """Whether each frame has prompts or a position of its own."""
    if not isinstance(model, DglModel):
        return False
    prompts: Prompts = model.prompts()
    return max(prompts.frames.shape[1] - 1, prompts.frame_positions.shape[1]) > 0


def _several(frames: torch.Tensor) -> torch.Tensor:
    """At least two frames, so that the trace does not take their number as fixed at one."""
    return frames if frames.shape[1] > 1 else frames.repeat(1, 2, 1, 1, 1)
