"""The quality gate of a lower precision: what it costs on captions and clips that did not calibrate it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_export.calibration import Half
from dgl_export.layer_statistics import Feeds
from dgl_runtime.bundle.manifest import MIN_COSINE, Quality
from dgl_runtime.encoder.self_check import cosines
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import ExportError

Float32 = NDArray[np.float32]
MIN_TOP1 = {"fp16": 0.99, "bf16": 0.99, "int8": 0.95, "fp8": 0.95}
MAX_RECALL_LOSS = 1.0  # points of R@1
# Captions that R@1 may lose whatever their share: one or two of a small set are chance.
FORGIVEN, FORGIVEN_FROM = 2, 32  # of sets smaller than that, one
# Clips whose similarities differ by less are equally good answers; which comes first is chance.
TIE = 1e-3


@dataclass(frozen=True)
class Embeddings:
    """Captions [Q, E] and clips [N, E], unit-norm float32."""

    captions: Float32
    clips: Float32


def embed_half(engines: Sequence[Engine], half: Half) -> Embeddings:
    """Embed in batches, as indexing does, with a caption engine and a clip engine."""
    captions, clips = engines
    return Embeddings(embed(captions, half.caption_feeds()), embed(clips, half.clip_feeds()))


def embed(engine: Engine, feeds: Iterable[Feeds]) -> Float32:
    """Run a graph on many inputs: unit-norm float32 [N, E]."""
    return np.concatenate([np.asarray(engine.run(feed)["embedding"], np.float32) for feed in feeds])


def compare(ours: Embeddings, exact: Embeddings, answers: NDArray[np.int64] | None) -> Quality:
    """What ``ours`` loses against the trained model's embeddings.

    Args:
        ours: Of the lower precision.
        exact: Of the trained model, in the same order.
        answers: The row of each caption's clip, int64 [Q]; None if it is not known.
    """
    pairs = ((ours.captions, exact.captions), (ours.clips, exact.clips))
    found = np.concatenate([cosines(*pair) for pair in pairs])
    similarity, true = ours.captions @ ours.clips.T, exact.captions @ exact.clips.T
    first = similarity.argmax(axis=1)
    gap = true.max(axis=1) - true[np.arange(len(true)), first]
    recalls = [None if answers is None else recall_at_1(s, answers) for s in (true, similarity)]
    return Quality(
        min_cosine=float(found.min()),
        mean_cosine=float(found.mean()),
        top1_agreement=float((gap <= TIE).mean()),
        recall_at_1_before=recalls[0],
        recall_at_1_after=recalls[1],
        num_captions=len(true),
        num_clips=true.shape[1],
    )


def recall_at_1(similarity: Float32, answers: NDArray[np.int64]) -> float:
    """Percent of captions that rank their own clip first."""
    return float(100 * (similarity.argmax(axis=1) == answers).mean())


def faults(quality: Quality, precision: str) -> list[str]:
    """What is too bad for a precision; nothing if it passes."""
    found = []
    if not quality.min_cosine >= MIN_COSINE[precision]:
        bound = MIN_COSINE[precision]
        found.append(f"smallest cosine {quality.min_cosine:.4f} (at least {bound} needed)")
    if not quality.top1_agreement >= MIN_TOP1[precision]:
        found.append(
            f"the same first clip for {quality.top1_agreement:.1%} of captions "
            f"(at least {MIN_TOP1[precision]:.0%} needed)"
        )
    before, after = quality.recall_at_1_before, quality.recall_at_1_after
    if before is not None and after is not None:
        forgiven = FORGIVEN if quality.num_captions >= FORGIVEN_FROM else 1
        allowed = max(MAX_RECALL_LOSS, 100 * forgiven / quality.num_captions)
        if before - after > allowed + 1e-9:
            found.append(f"R@1 falls from {before:.1f} to {after:.1f} (at most {allowed:.1f} less)")
    return found


def require(quality: Quality, precision: str, worst_layers: str) -> None:
    """Pass, or say what is too bad.

    Raises:
        ExportError: A bound is missed.
    """
    if found := faults(quality, precision):
        raise ExportError(
            f"quality gate: {precision} gives {'; '.join(found)}, on {quality.num_captions} captions and "
            f"{quality.num_clips} clips held out. Worst layers: {worst_layers}. Nothing was written. "
            "Calibrate with more clips of the kind you search, or take a higher --precision."
        )
