"""From captioned clips to batches of frames: one reader for every data set.

All that is random is a function of (seed, epoch, number of the clip), so a run that was stopped and
resumed sees the very frames it would have seen, whatever the number of processes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field

import click
import numpy as np
import torch
from torch import Tensor

from dgl_runtime.decoding.decode_process import LostWorkerError
from dgl_runtime.decoding.read_ahead import read_ahead
from dgl_runtime.decoding.workers import Worker, Workers
from dgl_runtime.errors import MediaError
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.clip_frames import CHOICES, FrameFormat, Look, read_frames
from dgl_train.data.read_processes import lost_at, read_workers

__all__ = ["CHOICES", "Batch", "FrameFormat", "read_batches"]

Item = tuple[int, int | None]
"""Number of a clip and the epoch, which decides its frame times; None: the centres of segments."""

_ORDER = 0  # a stream of random numbers; 1 are the times of frames


@dataclass(frozen=True)
class Batch:
    """Clips side by side.

    Attributes:
        numbers: Their numbers in the list of clips, B of them.
        frames: uint8 [B, F, 3, S, S] RGB.
    """

    numbers: list[int]
    frames: Tensor


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
        MediaError: If a video cannot be read, or a process is lost.
    """
    if num_workers == 0:
        for items in batches:
            batch = _Filling.of(items, clips, form, pin_memory)
            for row, look in enumerate(batch.looks):
                batch.frames[row] = torch.from_numpy(read_frames(look, form))
            yield batch.filled()
        return
    workers: Workers[_Place] = read_workers(num_workers)
    with workers:
        unread = (_Filling.of(items, clips, form, pin_memory) for items in batches)
        batches_read = _fill(workers, unread, form)
        with closing(read_ahead(batches_read, workers.stop, most=1)) as found:
            for some in found:
                yield from some


@dataclass
class _Filling:
    """A batch whose clips arrive in any order."""

    numbers: list[int]
    looks: list[Look]
    frames: Tensor
    begun: int = 0
    read: int = 0
    faults: dict[int, str] = field(default_factory=dict)  # row -> why it cannot be read

    @classmethod
    def of(
        cls,
        items: Sequence[Item],
        clips: Sequence[CaptionedClip],
        form: FrameFormat,
        pin_memory: bool,
    ) -> "_Filling":
        looks = [Look.at(clips[number], number, epoch) for number, epoch in items]
        spec = form.frames
        shape = len(items), spec.num_frames, 3, spec.size, spec.size
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
        return cls([number for number, _ in items], looks, frames)

    @property
    def is_begun(self) -> bool:
        """Whether each of its clips was given to a process."""
        return self.begun == len(self.looks)

    @property
    def is_read(self) -> bool:
        return self.read == len(self.looks)

    def filled(self) -> Batch:
        """The batch.

        Raises:
            MediaError: A clip of it cannot be read; the first one is told.
        """
        if self.faults:
            raise MediaError(self.faults[min(self.faults)])
        return Batch(self.numbers, self.frames)


_Place = tuple[_Filling, int]  # a row of a batch


def _fill(
    workers: "Workers[_Place]", unread: Iterator[_Filling], form: FrameFormat
) -> Iterator[Batch]:
    """Read the clips of batches, each by whichever process is free; batches come in order."""
    sent = _describe(form)
    begun: deque[_Filling] = deque()
    while not workers.is_stopped:
        while workers.have_room and (place := _next_place(begun, unread, workers.count)):
            batch, row = place
            workers.begin(place, _describe_look(batch.looks[row]) | {"form": sent})
        if not begun:
            return
        if workers.are_busy:
            for worker in workers.speaking():
                _hear(workers, worker)
        while begun and begun[0].is_read:
            yield begun.popleft().filled()


def _next_place(
    begun: deque[_Filling], unread: Iterator[_Filling], most_ahead: int
) -> _Place | None:
    """The next row to read; None: there is none, or enough is read ahead of the first batch."""
    if not begun or begun[-1].is_begun:
        ahead = sum(len(batch.looks) for batch in begun) - (len(begun[0].looks) if begun else 0)
        if ahead >= most_ahead or (batch := next(unread, None)) is None:
            return None
        begun.append(batch)
    batch = begun[-1]
    batch.begun += 1
    return batch, batch.begun - 1


def _describe_look(look: Look) -> dict[str, object]:
    """A clip as ``read_worker.py`` takes it."""
    span = look.span.start_s, look.span.end_s
    return {"path": str(look.video), "span": span, "seeds": look.seeds}


def _describe(form: FrameFormat) -> dict[str, object]:
    """A format as ``read_worker.py`` takes it."""
    cache = form.cache and (str(form.cache.folder), form.cache.limit_gb)
    return {"frames": asdict(form.frames), "seed": form.seed, "cache": cache}


def _hear(workers: "Workers[_Place]", worker: "Worker[_Place]") -> None:
    batch, row = worker.task
    try:
        message = worker.process.receive()
        if "frames" in message:
            worker.process.receive_into(batch.frames[row].numpy().data.cast("B"))
    except LostWorkerError as loss:
        raise lost_at(batch.looks[row].video, loss, "num_workers") from loss
    if "warning" in message:
        click.echo(message["warning"], err=True)
    if "done" in message:
        workers.release(worker)
        batch.read += 1
        if message["done"] is not None:
            batch.faults[row] = message["done"]


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
