"""Dynamic batching: what waits together is run together; what does not fit in the queue is refused at once."""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


_LOOK_EVERY_S = 0.001


class QueueFullError(Exception):
    """There is no place left; ``retry_s`` says when there may be one."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_s} s")
        self.retry_s = retry_s


@dataclass(frozen=True)
class BatchSettings:
    """How requests wait for each other.

    Attributes:
        most: Requests answered together.
        patience: How long a batch waits to become as large as the last one, as a share of the time that
            one took. After a request that came alone nothing waits.
        places: Requests in the queue.
    """

    most: int = 32
    patience: float = 0.2
    places: int = 256


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches, in one thread of its own; to be asked in one event loop.

    The thread takes the next batch without a word from the loop: one that is busy refusing must not keep
    what was accepted waiting.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        settings: BatchSettings,
    ) -> None:
        """Prepare.

        Args:
            answer: Requests -> an answer, or what is wrong, for each; called in the thread.
            settings: How requests wait.
        """
        self._answer = answer
        self._settings = settings
        self._waiting: queue.Queue[_Place[Request, Answer] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="dgl-batch", daemon=True)
        self._seconds_each = 0.01  # a running mean, to tell when to try again
        self._last_size, self._last_s = 1, 0.0

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    async def stop(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self._waiting.qsize()

    async def submit(self, request: Request) -> Answer:
        """Wait for the answer.

        Raises:
            QueueFullError: No place is left.
            Exception: What is wrong with the request.
        """
        if self.depth >= self._settings.places:
            raise QueueFullError(max(1, math.ceil(self._seconds_each * self.depth)))
        loop = asyncio.get_running_loop()
        place = _Place[Request, Answer](request, loop, loop.create_future())
        self._waiting.put(place)
        return await place.future

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            self._wait_for_others()
            batch = [first]
            while self.depth and len(batch) < self._settings.most:
                if (place := self._waiting.get()) is None:  # stop, when these are answered
                    self._waiting.put(None)
                    break
                batch.append(place)
            # Of the others the client has gone, or the time is over.
            if batch := [place for place in batch if not place.future.done()]:
                self._answer_all(batch)

    def _wait_for_others(self) -> None:
        """Those who were answered last are about to ask again, but one by one."""
        deadline = time.perf_counter() + self._settings.patience * self._last_s
        while self.depth + 1 < self._last_size and time.perf_counter() < deadline:
            time.sleep(_LOOK_EVERY_S)

    def _answer_all(self, batch: "Sequence[_Place[Request, Answer]]") -> None:
        started = time.perf_counter()
        answers: Sequence[Answer | Exception]
        try:
            answers = self._answer([place.request for place in batch])
        except Exception as error:  # handed to everybody who waits for it
            answers = [error] * len(batch)
        self._last_size, self._last_s = len(batch), time.perf_counter() - started
        self._seconds_each += 0.1 * (self._last_s / len(batch) - self._seconds_each)
        for place, answer in zip(batch, answers, strict=True):
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                place.loop.call_soon_threadsafe(_settle, place.future, answer)


@dataclass(frozen=True)
class _Place(Generic[Request, Answer]):
    """A request in the queue, and who waits for its answer."""

    request: Request
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Answer]"


def _settle(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
