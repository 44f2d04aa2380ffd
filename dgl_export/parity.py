"""The parity gate: graphs that differ from the trained model on golden inputs are refused."""

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from dgl_runtime.bundle.golden import Golden, RawInputs
from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.manifest import Parity
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.encoder.input_check import input_faults
from dgl_runtime.encoder.self_check import cosines
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import ExportError
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.pixels import preprocess
from dgl_train.model.dual_encoder import DualEncoder

Float32 = NDArray[np.float32]
# Float32 on unit-norm embeddings: rounding gives below 1e-6, any wrong step far more than 1e-4.
MAX_ABS = 1e-5
# Similarities closer than this are a tie for float32; their order means nothing.
TIE = 4 * MAX_ABS

CAPTIONS = (
    "a man is playing guitar on a stage",
    "a dog jumps into the lake",
    "cooking",
    "",
    "a red circle moves left over a dark background",
    "Two dogs &amp; a cat don't fight \u2014 they're playing in the caf\u00e9's garden, 2021!",
    "somebody opens the door, looks around and walks slowly out of the room",
    "\u732b\u304c\u8d70\u308b \U0001f600",
    "a woman talks about her new phone " * 12,
)
NUM_CLIPS = 6


def make_golden(model: DualEncoder, tokenizer: Tokenizer, frame_spec: FrameSpec) -> Golden:
    """Golden inputs, and what the trained model gives for them."""
    frames = drifting_patterns(NUM_CLIPS, frame_spec.num_frames, frame_spec.size)
    tokens = tokenizer(CAPTIONS)
    with torch.no_grad():
        captions = model.encode_captions(torch.from_numpy(tokens.ids).long())
        pixels = torch.from_numpy(frames)
        clips, weights = model.encode_clips(pixels), model.frame_weights(pixels)
    picture = odd_picture()
    return Golden(
        tokens=tokens.ids,
        lengths=tokens.lengths,
        frames=frames,
        caption_embeddings=captions.numpy(),
        clip_embeddings=clips.numpy(),
        frame_weights=weights.numpy(),
        raw=RawInputs(np.array(CAPTIONS), picture, preprocess(picture, frame_spec)),
        inputs=InputSpec(frame_spec, tokenizer.spec),
    )


def odd_picture() -> NDArray[np.uint8]:
    """A picture, [H, W, 3], that every resize and every interpolation makes another one of."""
    return np.random.default_rng(0).integers(0, 256, (29, 41, 3), np.uint8)


def require_inputs(golden: Golden, frames: FrameSpec, tokenizer: Tokenizer) -> None:
    """Pass what a bundle will do with texts and pictures on if it is what the model does.

    Args:
        golden: Of the model; the rest as it is read from the bundle's files.
        frames: Of the bundle.
        tokenizer: The bundle's.

    Raises:
        ExportError: Texts become other tokens, a picture becomes other pixels, or a rule is another.
    """
    for fault in input_faults(golden, frames, tokenizer):
        raise ExportError(
            f"parity gate: {fault}. Nothing was written; please report the backbone and the versions of "
            "tokenizers and pillow."
        )


def drifting_patterns(num_clips: int, num_frames: int, frame_size: int) -> NDArray[np.uint8]:
    """Clips of coarse patterns of colour that change from frame to frame, [N, F, 3, S, S].

    They compress well and differ from each other.
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (num_clips, 1, 3, 4, 4)) + rng.integers(
        -60, 61, (1, num_frames, 3, 4, 4)
    )
    coarse = patterns.clip(0, 255).astype(np.uint8)
    rows = np.arange(frame_size) * 4 // frame_size
    return np.ascontiguousarray(coarse[..., rows[:, None], rows[None, :]])


def measure(golden: Golden, captions: Engine, clips: Engine) -> Parity:
    """Compare the graphs with the golden outputs, at more than one batch size and caption length."""
    whole = run_clips(clips, golden.frames)
    alone = run_clips(clips, golden.frames[:1])
    together = run_captions(captions, golden.tokens)
    one_by_one = [
        run_captions(captions, row[None, :length])
        for row, length in zip(golden.tokens, golden.lengths, strict=True)
    ]
    embeddings = [
        (together, golden.caption_embeddings),
        (np.concatenate(one_by_one), golden.caption_embeddings),
        (whole[0], golden.clip_embeddings),
        (alone[0], golden.clip_embeddings[:1]),
    ]
    weights = golden.frame_weights
    numbers = [*embeddings, (whole[1], weights), (alone[1], weights[:1])]
    similarity = golden.caption_embeddings @ golden.clip_embeddings.T
    return Parity(
        # numpy's, because Python's max and min pass over a NaN
        max_abs=float(np.max([np.abs(ours - gold).max() for ours, gold in numbers])),
        min_cosine=float(np.min([cosines(ours, gold).min() for ours, gold in embeddings])),
        rank_agreement=rank_agreement(together @ whole[0].T, similarity),
        num_captions=len(golden.tokens),
        num_clips=len(golden.frames),
    )


def require(parity: Parity) -> Parity:
    """Pass float32 graphs on if they equal the trained model.

    Raises:
        ExportError: A number is off by more than ``MAX_ABS``, or a ranking differs.
    """
    if not (parity.max_abs <= MAX_ABS and parity.rank_agreement == 1):
        raise ExportError(
            f"parity gate: exported embeddings differ by {parity.max_abs:.1e} (at most {MAX_ABS:.0e} is "
            f"rounding) and {parity.rank_agreement:.0%} of rankings agree (100% needed). Nothing was "
            "written; please report the backbone, the method and the versions of torch and onnxruntime."
        )
    return parity


def require_numbers(parity: Parity) -> Parity:
    """Pass graphs of a lower precision on if every golden result is a number; see ``quality`` for its cost.

    Raises:
        ExportError: One is NaN or infinite.
    """
    if not np.isfinite(parity.max_abs):
        raise ExportError(
            f"a result for the golden inputs differs from the trained model's by {parity.max_abs}; a number "
            "is needed. Nothing was written. Take a higher --precision."
        )
    return parity


def rerun(golden: Golden, captions: Engine, clips: Engine) -> Golden:
    """The golden inputs with what these graphs make of them."""
    embeddings, weights = run_clips(clips, golden.frames)
    return replace(
        golden,
        caption_embeddings=run_captions(captions, golden.tokens),
        clip_embeddings=embeddings,
        frame_weights=weights,
    )


def run_captions(engine: Engine, tokens: NDArray[np.int32]) -> Float32:
    """Token ids int32 [Q, L] -> embeddings float32 [Q, E]."""
    return cast(Float32, engine.run({"tokens": tokens})["embedding"])


def run_clips(engine: Engine, frames: NDArray[np.generic]) -> tuple[Float32, Float32]:
    """Frames [B, F, 3, S, S] -> embeddings float32 [B, E] and frame weights float32 [B, F]."""
    out = engine.run({"frames": frames})
    return cast(Float32, out["embedding"]), cast(Float32, out["frame_weights"])


def rank_agreement(ours: Float32, gold: Float32) -> float:
    """Share of queries (rows) for which every pair of clips that is not a tie has the same order."""
    first, second = np.triu_indices(gold.shape[1], k=1)
    gap = gold[:, first] - gold[:, second]
    same = np.sign(ours[:, first] - ours[:, second]) == np.sign(gap)
    return float((same | (np.abs(gap) < TIE)).all(axis=1).mean())
