"""Requests answered together: in order, bounded, and nobody waits for what has gone."""

import asyncio
import threading
import time

import pytest

from dgl_runtime.serve.batching import Batcher, BatchSettings, QueueFullError


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def doubled(seen, pause_s=0.0):
    def answer(requests):
        seen.append(list(requests))
        time.sleep(pause_s)
        return [ValueError(f"{one} is odd") if one % 2 else 2 * one for one in requests]

    return answer


async def started(answer, **settings):
    batcher = Batcher(answer, BatchSettings(**settings))
    batcher.start()
    return batcher


def test_each_gets_its_own_answer_and_those_that_wait_are_answered_together():
    seen = []

    async def work():
        batcher = await started(doubled(seen, 0.05), most=8, places=100)
        found = await asyncio.gather(
            *(batcher.submit(n) for n in range(40)), return_exceptions=True
        )
        await batcher.stop()
        return found

    found = run(work())
    assert found[::2] == [2 * n for n in range(0, 40, 2)]
    assert [str(one) for one in found[1::2]] == [f"{n} is odd" for n in range(1, 40, 2)]
    assert sum(map(len, seen)) == 40
    assert max(map(len, seen)) == 8


def test_one_alone_does_not_wait():
    async def work():
        batcher = await started(doubled([], 0.01), patience=1e6)
        for _ in range(3):
            assert await batcher.submit(2) == 4
        await batcher.stop()

    run(work())


def test_what_does_not_fit_in_the_queue_is_refused_with_a_time():
    async def work():
        going, go_on = threading.Event(), threading.Event()

        def answer(requests):
            going.set()
            go_on.wait(20)
            return doubled([])(requests)

        batcher = await started(answer, most=2, places=4)
        first = asyncio.create_task(batcher.submit(2))
        await asyncio.to_thread(going.wait, 20)  # it has left the queue, and nothing else does
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        found = await asyncio.gather(
            *(batcher.submit(2) for _ in range(20)), return_exceptions=True
        )
        refused = [one for one in found if isinstance(one, QueueFullError)]
        assert len(refused) == 16
        assert await first == 4
        assert all(one.retry_s >= 1 for one in refused)
        assert await batcher.submit(4) == 8  # recovered
        await batcher.stop()

    run(work())


def test_a_request_that_gave_up_is_not_answered():
    seen = []

    async def work():
        batcher = await started(doubled(seen, 0.2), most=1)
        first = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(6), 0.05)
        assert await first == 4
        assert await batcher.submit(8) == 16
        await batcher.stop()

    run(work())
    assert seen == [[2], [8]]


def test_a_bug_reaches_those_who_wait_and_the_next_are_answered():
    calls = []

    def answer(requests):
        calls.append(requests)
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        return list(requests)

    async def work():
        batcher = await started(answer)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(1)
        assert await batcher.submit(2) == 2
        await batcher.stop()

    run(work())


def test_what_waits_at_the_stop_is_answered():
    async def work():
        batcher = await started(doubled([], 0.05), most=2)
        waiting = [asyncio.create_task(batcher.submit(2)) for _ in range(9)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert await asyncio.gather(*waiting) == [4] * 9

    run(work())
