"""Work in threads of its own: bounded, refused beyond, and the place given back whatever becomes of it."""

import asyncio
import threading

import pytest
from fastapi import HTTPException

from dgl_runtime.serve.lane import Lane


def add(one, *, other):
    return one + other, threading.current_thread().name


def fail():
    raise ValueError("no")


def test_work_is_done_in_threads_of_its_own():
    async def work():
        return await Lane(1, 1, "sums").run(add, 1, other=2)

    total, thread = asyncio.run(work())
    assert total == 3
    assert thread.startswith("dgl-sums")


def test_as_many_as_are_allowed_wait_and_the_next_is_refused():
    async def work():
        lane, go_on, running = Lane(2, 3, "pictures"), threading.Event(), threading.Semaphore(0)

        def slow():
            running.release()
            assert go_on.wait(20)

        for _ in range(2):  # as well when all have gone as at first
            go_on.clear()
            going = [asyncio.create_task(lane.run(slow)) for _ in range(3)]
            for _ in range(2):
                assert await asyncio.to_thread(running.acquire, timeout=20)
            assert not running.acquire(timeout=0.05)  # the third waits
            for _ in range(2):
                with pytest.raises(HTTPException, match="too many pictures are waited for") as no:
                    await lane.run(slow)
                assert (no.value.status_code, no.value.headers) == (429, {"Retry-After": "1"})
            go_on.set()
            await asyncio.gather(*going)
            assert running.acquire(timeout=20)

    asyncio.run(work())


def test_a_failure_gives_its_place_back():
    async def work():
        lane = Lane(1, 1, "sums")
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await lane.run(fail)
        assert await lane.run(lambda: 1) == 1

    asyncio.run(work())
