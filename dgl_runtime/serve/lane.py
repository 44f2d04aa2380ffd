"""A lane (bulkhead): work of one kind in threads of its own, with a bounded queue."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from fastapi import HTTPException

Given = ParamSpec("Given")
Made = TypeVar("Made")


class Lane:
    """To be asked in one event loop."""

    def __init__(self, at_once: int, most: int, what: str) -> None:
        """Prepare.

        Args:
            at_once: Threads.
            most: Requests that wait or are at work.
            what: Names it in refusals.
        """
        self._threads = ThreadPoolExecutor(at_once, f"dgl-{what}")
        self._most, self._what = most, what
        self._inside = 0

    async def run(
        self, work: Callable[Given, Made], *given: Given.args, **named: Given.kwargs
    ) -> Made:
        """Wait for a thread and for what it makes.

        Raises:
            HTTPException: 429, too many wait.
        """
        if self._inside >= self._most:
            raise HTTPException(429, f"too many {self._what} are waited for", {"Retry-After": "1"})
        self._inside += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: work(*given, **named))
        finally:
            self._inside -= 1
