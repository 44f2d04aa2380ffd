"""Captions and clips of the user's own kind: one half sets scales, the other judges the result."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dgl_export.parity import drifting_patterns
from dgl_runtime.bundle.tokenizer import Tokenizer, Tokens
from dgl_runtime.errors import ConfigError, ExportError, MediaError
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.video_files import find_videos
from dgl_runtime.media.windows import Span
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.datasets import read_dataset
from dgl_train.evaluation.evaluate import distinct_clips

Item = TypeVar("Item")

FEWEST, MOST = 8, 256  # clips; so many are 460 MB of pixels at 224 px and 12 frames
_SENTENCES_USED = 64
_WHO = ("a man", "two women", "a child", "a dog", "somebody in a red coat", "a group of people")
_DOES = (
    "is playing guitar",
    "walks slowly",
    "talks to the camera",
    "jumps",
    "is cooking",
    "runs away",
)
_WHERE = ("on a stage", "through the rain", "in a kitchen", "into the lake", "beside a car")
# For videos without captions: what people ask for.
SENTENCES = tuple(" ".join(words) for words in product(_WHO, _DOES, _WHERE))


@dataclass(frozen=True)
class Half:
    """One half of the calibration set."""

    tokens: Tokens
    frames: NDArray[np.uint8]  # [N, F, 3, S, S]
    answers: NDArray[np.int64] | None  # [Q], each caption's clip; None: not known

    def caption_feeds(self, batch: int = 16) -> Iterator[dict[str, NDArray[np.generic]]]:
        """The captions as inputs of the text encoder, as long as each batch needs."""
        for first in range(0, len(self.tokens), batch):
            yield {"tokens": self.tokens[first : first + batch].ids}

    def clip_feeds(self, batch: int = 2) -> Iterator[dict[str, NDArray[np.generic]]]:
        """The clips as inputs of the clip encoder."""
        for first in range(0, len(self.frames), batch):
            yield {"frames": self.frames[first : first + batch]}


@dataclass(frozen=True)
class Calibration:
    """What ``--calibrate`` named: clips take turns between the halves."""

    calibrates: Half
    judges: Half


def read_calibration(
    source: str, data_root: Path | None, frames: FrameSpec, tokenizer: Tokenizer
) -> Calibration:
    """Read a folder of videos, a csv or jsonl of captioned clips, or a data set by name.

    Of a data set the val split is taken, or else train, never test; at most ``MOST`` clips, spread
    evenly. Videos that cannot be read are named on stderr and left out.

    Raises:
        ExportError: Fewer than ``FEWEST`` clips can be read.
        MediaError: The folder does not exist or has no video.
        ConfigError: The data set or its file has a fault.
    """
    is_folder = Path(source).is_dir()
    clips = _clips_below(Path(source)) if is_folder else _captioned(source, data_root)
    read = list(_readable(_spread(clips, MOST), frames))
    if len(read) < FEWEST:
        raise ExportError(
            f"--calibrate {source} has {len(read)} clips that can be read (of {len(clips)}); at least "
            f"{FEWEST} are needed, and 64 or more are better. Give more videos of the kind you will search."
        )
    captions = (
        _spread(SENTENCES, _SENTENCES_USED) if is_folder else [clip.caption for clip, _ in read]
    )
    tokens = tokenizer(captions)
    pixels = np.stack([clip_pixels for _, clip_pixels in read])
    first, second = (_half(tokens, pixels, which, has_answers=not is_folder) for which in (0, 1))
    return Calibration(first, second)


def made_calibration(frames: FrameSpec, tokenizer: Tokenizer) -> Calibration:
    """Sentences and coarse patterns of colour, for precisions that need no scales."""
    pixels = drifting_patterns(2 * FEWEST, frames.num_frames, frames.size)
    tokens = tokenizer(_spread(SENTENCES, _SENTENCES_USED))
    first, second = (_half(tokens, pixels, which, has_answers=False) for which in (0, 1))
    return Calibration(first, second)


def _half(tokens: Tokens, frames: NDArray[np.uint8], which: int, *, has_answers: bool) -> Half:
    mine = frames[which::2]
    answers = np.arange(len(mine)) if has_answers else None
    return Half(tokens[which::2], mine, answers)


def _clips_below(folder: Path) -> list[CaptionedClip]:
    return [CaptionedClip(video, "") for video in find_videos([folder]).videos]


def _captioned(source: str, data_root: Path | None) -> list[CaptionedClip]:
    try:
        clips = read_dataset(source, data_root)
    except ConfigError as error:
        raise ConfigError(f"--calibrate {source} is no folder of videos, and {error}") from error
    for split in ("val", "train"):
        if found := [clip for clip in clips if clip.split == split]:
            return distinct_clips(found)
    raise ExportError(
        f"--calibrate {source} has test clips only; scales set on them would make the test too good. "
        "Give clips of split val or train."
    )


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, evenly spaced."""
    rows = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[row] for row in rows]


def _readable(
    clips: Sequence[CaptionedClip], frames: FrameSpec
) -> Iterator[tuple[CaptionedClip, NDArray[np.uint8]]]:
    for clip in tqdm(clips, desc="calibration clips", disable=None, leave=False):
        span = Span(clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s)
        try:
            yield clip, next(read_clips(clip.video, [span], frames))
        except MediaError as error:
            click.echo(f"Left out: {error}", err=True)
