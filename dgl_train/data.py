"""From captioned clips to batches of frames: one Dataset and one collate for every data set.

All that is random is a function of (seed, epoch, number of the clip), so a run that was stopped and
resumed sees the very frames it would have seen, whatever the number of workers.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.context import BaseContext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgl_runtime.errors import MediaError
from dgl_runtime.video import Span, read_clips
from dgl_train.datasets import CaptionedClip
from dgl_train.frame_cache import FrameCache, clip_key

Item = tuple[int, int | None]
"""Number of a clip and the epoch, which decides its frame times; None: the centres of segments."""

ReadClip = tuple[int, Tensor | MediaError]

_ORDER, _TIMES = 0, 1  # the streams of random numbers

CHOICES = 3
"""Moments of a segment that training chooses from where frames are kept on disk, so that all it can
see is kept. Odd, so that the middle one is the segment's centre, which evaluation looks at."""


@dataclass(frozen=True)
class Batch:
    """Clips side by side.

    Attributes:
        numbers: Their numbers in the list of clips, B of them.
        frames: uint8 [B, F, 3, S, S] RGB.
    """

    numbers: list[int]
    frames: Tensor

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU copies from by itself; DataLoader asks for it."""
        return Batch(self.numbers, self.frames.pin_memory())


@dataclass(frozen=True)
class FrameFormat:
    """How a clip is looked at.

    Attributes:
        num_frames: Frames of a clip, F.
        frame_size: Height and width of a frame, S pixels.
        seed: Decides the times of frames while training.
        cache: Where decoded frames are kept; then training chooses among ``CHOICES`` moments of
            a segment, also for clips there is no room for. None: it sees any moment.
    """

    num_frames: int
    frame_size: int
    seed: int = 0
    cache: FrameCache | None = None


class ClipDataset(Dataset[ReadClip]):
    """Reads one clip at a time, with the runtime's own video reader."""

    def __init__(self, clips: Sequence[CaptionedClip], form: FrameFormat) -> None:
        self.clips = clips
        self.form = form

    def __getitem__(self, item: Item) -> ReadClip:
        """The clip's number and its frames, or why it cannot be read."""
        number, epoch = item
        rng = None
        if epoch is not None:
            rng = np.random.default_rng((self.form.seed, _TIMES, epoch, number))
        try:
            frames = _frames(self.clips[number], self.form, rng)
        except MediaError as error:
            return number, error
        return number, torch.from_numpy(frames)


def _frames(
    clip: CaptionedClip, form: FrameFormat, rng: np.random.Generator | None
) -> NDArray[np.uint8]:
    """Frames uint8 [F, 3, S, S] at the times ``rng`` draws; None: the centres of segments."""
    span = Span(clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s)
    size, count = form.frame_size, form.num_frames
    if form.cache is None:
        return next(read_clips(clip.video, [span], count, size, rng=rng))
    chosen = np.full(count, CHOICES // 2) if rng is None else rng.integers(CHOICES, size=count)
    rows = CHOICES * np.arange(count) + chosen
    key = clip_key(clip.video, span, CHOICES * count, size)
    frames = form.cache.get(key, rows, size)
    if frames is None:
        # The centres of F * CHOICES segments are those of each segment's CHOICES parts.
        every = next(read_clips(clip.video, [span], CHOICES * count, size))
        form.cache.put(key, every)
        frames = every[rows]
    return frames


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
    batches = iter(batches)
    first = list(islice(batches, num_workers))
    num_workers = len(first)  # a process without a batch of its own would start for nothing
    loader: DataLoader[ReadClip] = DataLoader(
        ClipDataset(clips, form),
        batch_sampler=chain(first, batches),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=_worker_context() if num_workers else None,
        worker_init_fn=_follow_main,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, MediaError):
            raise batch
        yield batch


def _worker_context() -> BaseContext:
    """How workers start: not forked from this process, whose threads' locks a fork would copy.

    They are forked from one that has imported torch and does nothing else: to import it in each
    worker of each epoch's evaluation costs 2 s of a core. Windows has no such thing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _follow_main(_worker: int) -> None:
    """Leave Ctrl-C to the main process, and end when it ends, also if it is killed.

    torch's own watch over the parent process sees the one a worker was forked from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


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


def share(batches: Iterable[Sequence[Item]], rank: int, world: int) -> Iterator[Sequence[Item]]:
    """The part of every batch that one of ``world`` processes reads: ``rank`` counts from 0.

    The parts follow each other in the batch's order; their sizes differ by 1 at most.
    """
    for batch in batches:
        start, end = (len(batch) * place // world for place in (rank, rank + 1))
        yield batch[start:end]


def evaluation_batches(num_clips: int, batch_size: int) -> Iterator[list[Item]]:
    """All clips in order, looked at in the centres of their segments."""
    for start in range(0, num_clips, batch_size):
        yield [(number, None) for number in range(start, min(start + batch_size, num_clips))]
