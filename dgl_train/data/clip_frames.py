"""The frames of a clip as training and evaluation look at it. Without torch: processes start at once."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.video import Span, read_clips
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.frame_cache import FrameCache, clip_key

CHOICES = 3
"""Moments of a segment that training chooses from where frames are kept on disk, so that all it can
see is kept. Odd, so that the middle one is the segment's centre, which evaluation looks at."""

_TIMES = 1  # a stream of random numbers; 0 is the order of clips


@dataclass(frozen=True)
class FrameFormat:
    """How a clip is looked at.

    Attributes:
        frames: How many, and how each becomes pixels.
        seed: Decides the times of frames while training.
        cache: Where decoded frames are kept; then training chooses among ``CHOICES`` moments of
            a segment, also for clips there is no room for. None: it sees any moment.
    """

    frames: FrameSpec
    seed: int = 0
    cache: FrameCache | None = None


@dataclass(frozen=True)
class Look:
    """One look at one clip.

    Attributes:
        video: The file.
        span: The clip.
        seeds: What decides the times of frames, beside the seed of the format; None: the centres
            of segments.
    """

    video: Path
    span: Span
    seeds: tuple[int, int] | None

    @classmethod
    def at(cls, clip: CaptionedClip, number: int, epoch: int | None) -> "Look":
        """Clip ``number`` of a list, in an epoch of training; None: in evaluation."""
        span = Span(clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s)
        return cls(clip.video, span, None if epoch is None else (epoch, number))


def read_frames(look: Look, form: FrameFormat) -> NDArray[np.uint8]:
    """Frames uint8 [F, 3, S, S].

    Raises:
        MediaError: The video cannot be read.
    """
    rng = look.seeds and np.random.default_rng((form.seed, _TIMES, *look.seeds))
    if form.cache is None:
        return next(read_clips(look.video, [look.span], form.frames, rng=rng))
    count = form.frames.num_frames
    chosen = np.full(count, CHOICES // 2) if rng is None else rng.integers(CHOICES, size=count)
    rows = CHOICES * np.arange(count) + chosen
    kept = replace(form.frames, num_frames=CHOICES * count)
    key = clip_key(look.video, look.span, kept)
    frames = form.cache.get(key, rows, kept.size)
    if frames is None:
        # The centres of F * CHOICES segments are those of each segment's CHOICES parts.
        every = next(read_clips(look.video, [look.span], kept))
        form.cache.put(key, every)
        frames = every[rows]
    return frames
