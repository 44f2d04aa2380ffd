"""From captioned clips to batches of frames: one Dataset and one collate for every data set.

All that is random is a function of (seed, epoch, number of the clip), so a run that was stopped and
resumed sees the very frames it would have seen, whatever the number of workers.
"""

import math
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgl_runtime.errors import MediaError
from dgl_runtime.video import Span, read_clips
from dgl_train.datasets import CaptionedClip

Item = tuple[int, int | None]
"""Number of a clip and the epoch, which decides its frame times; None: the centres of segments."""

ReadClip = tuple[int, Tensor | MediaError]

_ORDER, _TIMES = 0, 1  # the streams of random numbers


@dataclass(frozen=True)
class Batch:
    """Clips side by side.

    Attributes:
        numbers: Their numbers in the list of clips, B of them.
        frames: uint8 [B, F, 3, S, S] RGB.
    """

    numbers: list[int]
    frames: Tensor


@dataclass(frozen=True)
class FrameFormat:
    """How a clip is looked at.

    Attributes:
        num_frames: Frames of a clip, F.
        frame_size: Height and width of a frame, S pixels.
        seed: Decides the times of frames while training.
    """

    num_frames: int
    frame_size: int
    seed: int = 0


class ClipDataset(Dataset[ReadClip]):
    """Reads one clip at a time, with the runtime's own video reader."""

    def __init__(self, clips: Sequence[CaptionedClip], form: FrameFormat) -> None:
        self.clips = clips
        self.form = form

    def __getitem__(self, item: Item) -> ReadClip:
        """The clip's number and its frames, or why it cannot be read."""
        number, epoch = item
        clip = self.clips[number]
        span = Span(clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s)
        rng = None
        if epoch is not None:
            rng = np.random.default_rng((self.form.seed, _TIMES, epoch, number))
        try:
            size, count = self.form.frame_size, self.form.num_frames
            frames = next(read_clips(clip.video, [span], count, size, rng=rng))
        except MediaError as error:
            return number, error
        return number, torch.from_numpy(frames)


def collate(items: Sequence[ReadClip]) -> Batch | MediaError:
    """Stack clips, or pass on the first error among them."""
    frames = []
    for _, read in items:
        if isinstance(read, MediaError):
            return read
        frames.append(read)
    return Batch([number for number, _ in items], torch.stack(frames))


def read_batches(
    clips: Sequence[CaptionedClip],
    form: FrameFormat,
    batches: Iterable[Sequence[Item]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Read batches of clips ahead of their use.

    Args:
        clips: The clips that the items number.
        form: How they are looked at.
        batches: Which clips make up each batch.
        num_workers: Processes that read; 0: this one.
        pin_memory: Whether frames wait in memory that a GPU can copy from by itself.

    Raises:
        MediaError: If a video cannot be read.
    """
    # Not forked: this process runs threads of torch and the tokenizer; a fork copies their locks.
    context = multiprocessing.get_context("spawn") if num_workers else None
    loader: DataLoader[ReadClip] = DataLoader(
        ClipDataset(clips, form),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_leave_ctrl_c_to_main,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, MediaError):
            raise batch
        yield batch


def _leave_ctrl_c_to_main(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def steps_per_epoch(num_clips: int, batch_size: int) -> int:
    """Whole batches in an epoch; what remains is left to the next epoch's order."""
    return max(1, num_clips // batch_size)


def training_batches(
    num_clips: int, *, batch_size: int, epochs: int, seed: int, first_step: int = 0
) -> Iterator[list[Item]]:
    """The batches of a whole training run, from any step on.

    Every epoch has an order of its own. Batches are taken as they come: two captions of one clip,
    or two equal captions, may meet in a batch and then count as each other's wrong answer, as in
    the paper's training.
    """
    per_epoch = steps_per_epoch(num_clips, batch_size)
    for epoch in range(first_step // per_epoch, epochs):
        order = np.random.default_rng((seed, _ORDER, epoch)).permutation(num_clips)
        first = first_step - epoch * per_epoch if epoch == first_step // per_epoch else 0
        for step in range(first, per_epoch):
            yield [(int(n), epoch) for n in order[step * batch_size : (step + 1) * batch_size]]


def evaluation_batches(num_clips: int, batch_size: int) -> Iterator[list[Item]]:
    """All clips in order, looked at in the centres of their segments."""
    for start in range(0, num_clips, batch_size):
        yield [(number, None) for number in range(start, min(start + batch_size, num_clips))]
