"""Pictures of what global prompt 0, a clip's embedding, attends to in the last block."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgl_runtime.search.contact_sheet import SheetHit, SheetRow, draw_contact_sheet
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.data.datasets import CaptionedClip
from dgl_train.model.dgl import global_attention
from dgl_train.model.dual_encoder import DualEncoder

Float32 = NDArray[np.float32]

_HEAT = np.array([255, 106, 0], np.float32)  # orange, over frames in grey
_HEAT_STRENGTH = 0.8  # of the strongest patch: what is below stays visible


@dataclass(frozen=True)
class GlobalAttention:
    """Where global prompt 0 looks, mean over heads.

    Attributes:
        frames: Share of each frame, float32 [B, F]; rows sum to 1.
        patches: Share of each patch in all that goes to frames, float32 [B, F, side, side]; what is
            missing to 1 goes to class tokens and frame prompts.
    """

    frames: Float32
    patches: Float32


@torch.inference_mode()
def measure_attention(model: DualEncoder, frames: Tensor) -> GlobalAttention:
    """Measure the attention of global prompt 0 in the last block.

    Args:
        model: A model with global prompts.
        frames: uint8 pixels [B, F, 3, S, S], on the model's device.

    Raises:
        ConfigError: The model has no global prompts.
    """
    state = global_attention(model, frames)
    side = math.isqrt(state.frames.shape[2])  # a class token more or less changes nothing
    to_frames = state.frame_attention()  # patches stand last
    shares = to_frames / to_frames.sum(dim=(1, 2), keepdim=True)
    patches = shares[:, :, -side * side :]
    return GlobalAttention(
        state.frame_weights().cpu().numpy(), patches.unflatten(-1, (side, side)).cpu().numpy()
    )


def draw_attention(
    out: Path,
    model: DualEncoder,
    clips: Sequence[CaptionedClip],
    *,
    num_frames: int,
    device: torch.device,
) -> None:
    """Draw one picture for each clip, and write the numbers to ``attention.json``.

    Args:
        out: The folder; made if missing, files of the same names are replaced.
        model: A model with global prompts, on its device.
        clips: The clips to draw.
        num_frames: F.
        device: Where the model is.

    Raises:
        ConfigError: The model has no global prompts.
        MediaError: A video cannot be read.
    """
    form = FrameFormat(replace(model.inputs.frames, num_frames=num_frames))
    entries = []
    for batch in read_batches(clips, form, evaluation_batches(len(clips), 1)):
        (number,) = batch.numbers
        seen = measure_attention(model, batch.frames.to(device))
        clip, name = clips[number], f"{number:03d}.png"
        draw_clip_attention(
            out / name, clip.caption, batch.frames[0].numpy(), seen.frames[0], seen.patches[0]
        )
        entries.append(
            {
                "picture": name,
                "caption": clip.caption,
                "video": str(clip.video),
                "start_s": clip.start_s,
                "end_s": clip.end_s,
                "frame_weights": seen.frames[0].tolist(),
                "patch_weights": seen.patches[0].tolist(),
            }
        )
    temporary = out / ".attention.json"
    temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / "attention.json")


def draw_clip_attention(
    path: Path, caption: str, frames: NDArray[np.uint8], by_frame: Float32, patches: Float32
) -> None:
    """Draw the frames with their weights, and below with the weight of each patch.

    Args:
        path: The PNG file to write.
        caption: What stands above.
        frames: uint8 [F, 3, S, S].
        by_frame: Share of each frame, [F].
        patches: Share of each patch, [F, side, side].
    """
    highest = float(patches.max())
    title = (
        f"by patch: {100 * patches.sum():.0f} % of the attention; full orange is "
        f"{100 * highest:.2g} % on one patch"
    )
    strips = [
        SheetHit("by frame: class token, frame prompts and patches together", frames, by_frame),
        SheetHit(title, _overlay(frames, patches / highest), patches.sum(axis=(1, 2))),
    ]
    draw_contact_sheet(path, [SheetRow(caption, strips)])


def _overlay(frames: NDArray[np.uint8], heat: Float32) -> NDArray[np.uint8]:
    """Frames in grey, each patch orange by its heat, 0 to 1: uint8 [F, 3, S, S]."""
    scale = frames.shape[-1] // heat.shape[-1]
    alpha = _HEAT_STRENGTH * heat.repeat(scale, axis=1).repeat(scale, axis=2)[:, None]
    grey = frames.mean(axis=1, keepdims=True)
    mixed: NDArray[np.uint8] = ((1 - alpha) * grey + alpha * _HEAT[:, None, None]).astype(np.uint8)
    return mixed
