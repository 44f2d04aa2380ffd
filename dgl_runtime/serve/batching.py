"""Requests that arrive together are answered together; more than fit in the queue are refused at once."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


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
        wait_s: How long a request waits for others, where the one before did not come alone.
        places: Requests in the queue.
    """

    most: int = 32
    wait_s: float = 0.003
    places: int = 256


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches, in one thread of its own. To be used in one event loop."""

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
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "dgl-batch")
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._seconds_each = 0.01  # a running mean, to tell when to try again
        self.last_size = 0

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        self._is_stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def submit(self, request: Request) -> Answer:
        """Wait for the answer.

        Raises:
            QueueFullError: No place is left.
            Exception: What is wrong with the request.
        """
        if len(self._waiting) >= self._settings.places:
            raise QueueFullError(max(1, math.ceil(self._seconds_each * len(self._waiting))))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._arrived.set()
        return await future

    async def _run(self) -> None:
        while self._waiting or not self._is_stopping:
            await self._arrived.wait()
            if self.last_size > 1 and len(self._waiting) < self._settings.most:
                await asyncio.sleep(self._settings.wait_s)
            batch: list[tuple[Request, asyncio.Future[Answer]]] = []
            while self._waiting and len(batch) < self._settings.most:
                request, future = self._waiting.popleft()
                if not future.done():  # else its client has gone, or its time is over
                    batch.append((request, future))
            if not self._waiting and not self._is_stopping:
                self._arrived.clear()
            if batch:
                await self._answer_all(batch)

    async def _answer_all(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        self.last_size = len(batch)
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        answers: Sequence[Answer | Exception]
        try:
            answers = await loop.run_in_executor(
                self._thread, self._answer, [request for request, _ in batch]
            )
        except Exception as error:  # handed to everybody who waits for it
            answers = [error] * len(batch)
        each = (time.perf_counter() - started) / len(batch)
        self._seconds_each += 0.1 * (each - self._seconds_each)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
