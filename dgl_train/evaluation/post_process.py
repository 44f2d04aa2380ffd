"""Figures after a correction for hubs, kept apart from the raw ones: dual softmax and QB-Norm.

Their inverse temperature is chosen on clips held out of training, by R@1 and then mean rank from text
to video; the bank of QB-Norm is captions the model was trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.search.metrics import RetrievalMetrics, summarize, text_to_video, video_to_text
from dgl_runtime.search.querybank import (
    activation_set,
    choose_temperature,
    dual_softmax,
    hubness,
    qb_norm,
)
from dgl_train.data.datasets import CaptionedClip
from dgl_train.evaluation.evaluate import Embeddings, Encoders, embed_captions, embed_dataset

Float32 = NDArray[np.float32]

_BANK = 10_000  # captions at most: more cost time and change little


@dataclass(frozen=True)
class Calibration:
    """What the corrections may know beside the test set.

    Attributes:
        held_out: Clips held out of training.
        bank: Captions of training clips, float32 [M, E].
        chosen_on: Which clips are held out, in words.
    """

    held_out: Embeddings
    bank: Float32
    chosen_on: str


@dataclass(frozen=True)
class Processed:
    """Figures after a correction.

    Attributes:
        method: Its name.
        uses: What it knows that a single query would not.
        beta: Its inverse temperature.
        chosen_on: Where that was chosen.
        text_to_video: Each caption ranks all clips.
        video_to_text: Each clip ranks all captions; None where the method has no such direction.
    """

    method: str
    uses: str
    beta: float
    chosen_on: str
    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics | None


def calibrate(
    encoders: Encoders,
    train: Sequence[CaptionedClip],
    held_out: Sequence[CaptionedClip],
    *,
    progress: bool = True,
) -> Calibration:
    """Embed the held-out clips and a bank of training captions.

    Raises:
        MediaError: A video cannot be read.
    """
    captions = list(dict.fromkeys(clip.caption for clip in train))
    spread = np.linspace(0, len(captions) - 1, min(len(captions), _BANK)).astype(int)
    is_split = all(clip.split == "val" for clip in held_out)
    part = "the val split" if is_split else "a part held out of train"
    return Calibration(
        embed_dataset(encoders, held_out, progress=progress),
        embed_captions(encoders, [captions[row] for row in spread]),
        f"{part} ({len(held_out)} captions)",
    )


def post_process(
    test: Embeddings, calibration: Calibration, *, group_captions: bool = False
) -> list[Processed]:
    """Correct similarities with each method, its temperature chosen on the held-out clips."""
    return [_dual_softmax(test, calibration, group_captions), _querybank(test, calibration)]


def _dual_softmax(test: Embeddings, calibration: Calibration, group_captions: bool) -> Processed:
    beta = _choose(calibration, lambda data, beta: dual_softmax(data.similarity(), beta))
    similarity, owners = test.similarity(), test.caption_clip
    by_caption = summarize(text_to_video(dual_softmax(similarity, beta), owners))
    corrected = dual_softmax(similarity.T, beta).T
    by_clip = summarize(video_to_text(corrected, owners, group_captions=group_captions))
    uses = "uses the whole test set"
    return Processed("dual softmax", uses, beta, calibration.chosen_on, by_caption, by_clip)


def _querybank(test: Embeddings, calibration: Calibration) -> Processed:
    bank = calibration.bank
    beta = _choose(calibration, lambda data, beta: _qb_norm(data, bank, beta))
    by_caption = summarize(text_to_video(_qb_norm(test, bank, beta), test.caption_clip))
    uses = f"uses a bank of {len(bank)} training captions"
    # Nothing from video to text: its bank would be training clips.
    return Processed("QB-Norm", uses, beta, calibration.chosen_on, by_caption, None)


def _qb_norm(data: Embeddings, bank: Float32, beta: float) -> Float32:
    against = bank @ data.clips.T
    return qb_norm(data.similarity(), hubness(against, beta), activation_set(against))


def _choose(calibration: Calibration, correct: Callable[[Embeddings, float], Float32]) -> float:
    held_out = calibration.held_out

    def score(beta: float) -> tuple[float, float]:
        found = summarize(text_to_video(correct(held_out, beta), held_out.caption_clip))
        return found.r1, -found.mean_rank

    return choose_temperature(score)
