"""One protocol for every model: captions rank clips and clips rank captions.

A torch model and an exported bundle are both seen as ``Encoders``, so their numbers compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.search.metrics import (
    RetrievalMetrics,
    direction_score,
    summarize,
    text_to_video,
    video_to_text,
)
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.data.datasets import CaptionedClip
from dgl_train.data.frame_cache import FrameCache
from dgl_train.model.dual_encoder import DualEncoder

Float32 = NDArray[np.float32]

_BATCH_FRAMES, _BATCH_CAPTIONS = 384, 256  # encoded at once


@dataclass(frozen=True)
class Encoders:
    """What evaluation needs of a model.

    Attributes:
        embed_captions: Captions -> unit-norm embeddings [Q, E].
        embed_clips: uint8 RGB [B, F, 3, S, S] -> unit-norm embeddings [B, E].
        weigh_frames: The same -> how much each frame counted, [B, F]; rows sum to 1.
        tokenizer: What captions are read with.
        frames: What it wants of clips.
    """

    embed_captions: Callable[[list[str]], Float32]
    embed_clips: Callable[[NDArray[np.uint8]], Float32]
    weigh_frames: Callable[[NDArray[np.uint8]], Float32]
    tokenizer: Tokenizer
    frames: FrameSpec


@dataclass(frozen=True)
class Embeddings:
    """A data set as a model sees it.

    Attributes:
        captions: Float32 [Q, E].
        clips: Float32 [N, E]; a clip with several captions is here once.
        caption_clip: The row of each caption's clip, int64 [Q].
        reversed_captions: Captions of the reversed event, float32 [R, E].
        reversed_rows: The rows in ``captions`` they belong to, int64 [R].
    """

    captions: Float32
    clips: Float32
    caption_clip: NDArray[np.int64]
    reversed_captions: Float32
    reversed_rows: NDArray[np.int64]

    def similarity(self) -> Float32:
        """Cosines of captions and clips, [Q, N]."""
        found: Float32 = self.captions @ self.clips.T
        return found


@dataclass(frozen=True)
class Report:
    """How well a model retrieves.

    Attributes:
        text_to_video: Each caption ranks all clips.
        video_to_text: Each clip ranks all captions, its best one counts.
        direction_score: Percentage of clips closer to their caption than to that of the reversed
            event; None where the data set has no reversed captions.
        direction_clips: How many captions have another one for the reversed event.
    """

    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics
    direction_score: float | None
    direction_clips: int


def torch_encoders(model: DualEncoder, device: torch.device) -> Encoders:
    """A torch model on its device."""
    tokenizer = model.tokenizer

    @torch.inference_mode()
    def embed_captions(captions: list[str]) -> Float32:
        tokens = torch.from_numpy(tokenizer(captions).ids).to(device)
        embeddings: Float32 = model.encode_captions(tokens).cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def embed_clips(frames: NDArray[np.uint8]) -> Float32:
        embeddings: Float32 = model.encode_clips(torch.from_numpy(frames).to(device)).cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def weigh_frames(frames: NDArray[np.uint8]) -> Float32:
        weights: Float32 = model.frame_weights(torch.from_numpy(frames).to(device)).cpu().numpy()
        return weights

    return Encoders(
        embed_captions,
        embed_clips,
        weigh_frames,
        tokenizer,
        model.inputs.frames,
    )


def bundle_encoders(folder: Path, *, device: str = "cpu", engine: str = "auto") -> Encoders:
    """An exported bundle, run by the runtime.

    Raises:
        BundleError: If it cannot be read.
        EngineError: If the device is missing.
    """
    from dgl_runtime.encoder.encoder import Encoder

    encoder = Encoder(folder, device=device, engine=engine)
    return Encoders(
        encoder.embed_texts,
        lambda frames: encoder.embed_clips(frames).embeddings,
        lambda frames: encoder.embed_clips(frames).frame_weights,
        encoder.tokenizer,
        encoder.input_spec.frames,
    )


def embed_dataset(
    encoders: Encoders,
    clips: Sequence[CaptionedClip],
    *,
    num_workers: int = 0,
    cache: FrameCache | None = None,
    progress: bool = True,
) -> Embeddings:
    """Embed every caption, every clip once, and the captions of reversed events.

    Raises:
        MediaError: If a video cannot be read.
    """
    distinct = distinct_clips(clips)
    rows = {clip.place: row for row, clip in enumerate(distinct)}
    reversible = [
        (row, clip.reversed_caption)
        for row, clip in enumerate(clips)
        if clip.reversed_caption not in (None, clip.caption)
    ]
    reversed_captions = [caption for _, caption in reversible if caption is not None]
    return Embeddings(
        captions=embed_captions(encoders, [clip.caption for clip in clips]),
        clips=_embed_clips(encoders, distinct, num_workers, cache, progress),
        caption_clip=np.array([rows[clip.place] for clip in clips], np.int64),
        reversed_captions=embed_captions(encoders, reversed_captions),
        reversed_rows=np.array([row for row, _ in reversible], np.int64),
    )


def distinct_clips(clips: Sequence[CaptionedClip]) -> list[CaptionedClip]:
    """Each clip once, with the first of its captions: the rows of ``Embeddings.clips``."""
    first: dict[tuple[Path, float | None, float | None], CaptionedClip] = {}
    for clip in clips:
        first.setdefault(clip.place, clip)
    return list(first.values())


def embed_captions(encoders: Encoders, captions: list[str]) -> Float32:
    """Captions in batches -> unit-norm float32 [Q, E]."""
    starts = range(0, len(captions), _BATCH_CAPTIONS)
    parts = [encoders.embed_captions(captions[at : at + _BATCH_CAPTIONS]) for at in starts]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _embed_clips(
    encoders: Encoders,
    clips: Sequence[CaptionedClip],
    num_workers: int,
    cache: FrameCache | None,
    progress: bool,
) -> Float32:
    batches = read_batches(
        clips,
        FrameFormat(encoders.frames, cache=cache),
        evaluation_batches(len(clips), max(1, _BATCH_FRAMES // encoders.frames.num_frames)),
        num_workers=num_workers,
    )
    parts = []
    with tqdm(total=len(clips), desc="clips", disable=not progress, leave=False) as bar:
        for batch in batches:
            parts.append(encoders.embed_clips(batch.frames.numpy()))
            bar.update(len(batch.numbers))
    return np.concatenate(parts)


def report(embeddings: Embeddings, *, group_captions: bool = False) -> Report:
    """Rank by cosine similarity, both ways; see ``video_to_text`` for ``group_captions``."""
    similarity = embeddings.similarity()
    owners = embeddings.caption_clip
    direction = None
    if len(rows := embeddings.reversed_rows):
        own_clip = embeddings.clips[owners[rows]]
        reversed_event = (embeddings.reversed_captions * own_clip).sum(axis=1)
        own = (embeddings.captions[rows] * own_clip).sum(axis=1)
        direction = direction_score(own, reversed_event)
    return Report(
        text_to_video=summarize(text_to_video(similarity, owners)),
        video_to_text=summarize(video_to_text(similarity, owners, group_captions=group_captions)),
        direction_score=direction,
        direction_clips=len(rows),
    )


def evaluate(
    encoders: Encoders,
    clips: Sequence[CaptionedClip],
    *,
    num_workers: int = 0,
    cache: FrameCache | None = None,
    progress: bool = True,
) -> Report:
    """Embed a data set and rank it; the cache gives the same frames sooner.

    Raises:
        MediaError: If a video cannot be read.
    """
    embeddings = embed_dataset(
        encoders, clips, num_workers=num_workers, cache=cache, progress=progress
    )
    return report(embeddings)
