"""Requests answered together: in order, bounded, and nobody waits for what has gone."""

import asyncio
import threading
import time

import pytest

from dgl_runtime.serve import batching
from dgl_runtime.serve.batching import Batcher, BatchSettings, QueueFullError


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def doubled(seen, pause_s=0.0):
    def answer(requests):
        seen.append(list(requests))
        time.sleep(pause_s)
        return [ValueError(f"{one} is odd") if one % 2 else 2 * one for one in requests]

    return answer


class Clock:
    """Time that passes while requests are answered, and while others are waited for if it runs."""

    def __init__(self):
        self.now, self.runs = 0.0, True

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(0.001)
        self.now += seconds if self.runs else 0.0


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(batching, "time", made)
    return made


class Gate:
    """Answers with the requests themselves, in some seconds of a clock, when it is opened."""

    def __init__(self, clock, takes_s):
        self.clock, self.takes_s, self.seen = clock, takes_s, []
        self.going, self.go_on = threading.Event(), threading.Event()

    def __call__(self, requests):
        self.seen.append(list(requests))
        self.going.set()
        assert self.go_on.wait(20)
        self.clock.now += self.takes_s
        return requests

    async def hold(self, batcher, waiting):
        """One request that is being answered, and others behind it."""
        tasks = [asyncio.create_task(batcher.submit(2))]
        assert await asyncio.to_thread(self.going.wait, 20)
        tasks += [asyncio.create_task(batcher.submit(4)) for _ in range(waiting)]
        await asyncio.sleep(0)
        assert batcher.depth == waiting
        return tasks


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


def test_how_requests_wait_when_nothing_else_is_said():
    settings = BatchSettings()
    assert (settings.most, settings.patience, settings.places) == (32, 0.2, 256)
    error = QueueFullError(7)
    assert (str(error), error.retry_s) == ("the queue is full, try again in 7 s", 7)


def test_when_it_has_stopped_nothing_runs():
    async def work():
        batcher = await started(doubled([], 0.05))
        going = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        await batcher.stop()
        assert not batcher._thread.is_alive()
        return await going

    assert run(work()) == 4


def test_those_who_were_answered_together_are_waited_for_but_not_for_long(clock):
    gate = Gate(clock, takes_s=0.2)

    async def work():
        batcher = await started(gate, most=8, patience=1.0)
        held = await gate.hold(batcher, waiting=3)
        gate.go_on.set()
        await asyncio.gather(*held)
        clock.runs = False  # they are waited for, however long they take
        asked = []
        for _ in range(3):
            asked.append(asyncio.create_task(batcher.submit(6)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asked)
        clock.runs, began_s = True, clock.now
        await batcher.submit(8)  # the other two do not ask again
        assert clock.now - began_s == pytest.approx(0.2 + 0.2, abs=0.002)
        began_s = clock.now
        await batcher.submit(8)  # after one alone nothing waits
        assert clock.now - began_s == pytest.approx(0.2)
        await batcher.stop()

    run(work())
    assert gate.seen == [[2], [4] * 3, [6] * 3, [8], [8]]


def test_a_batch_that_is_as_large_as_the_last_one_does_not_wait():
    async def work():
        batcher = await started(doubled([], 0.05), most=8, patience=1e6)
        for _ in range(3):
            first = asyncio.create_task(batcher.submit(2))
            await asyncio.gather(first, *(batcher.submit(2) for _ in range(3)))
        await batcher.stop()

    run(work())


def test_the_time_to_try_again_follows_how_long_answers_take(clock):
    gate = Gate(clock, takes_s=0.0)

    async def work():
        batcher = await started(gate, most=1, places=10)
        batcher._seconds_each = 0.5
        held = await gate.hold(batcher, waiting=10)
        with pytest.raises(QueueFullError, match="try again in 5 s"):
            await batcher.submit(2)
        gate.go_on.set()
        await asyncio.gather(*held)
        assert batcher._seconds_each == pytest.approx(0.5 * 0.9**11)
        await batcher.stop()

    run(work())


def test_the_time_of_a_batch_is_shared_by_its_requests(clock):
    gate = Gate(clock, takes_s=0.4)

    async def work():
        batcher = await started(gate, most=8)
        held = await gate.hold(batcher, waiting=4)
        gate.go_on.set()
        await asyncio.gather(*held)  # one, then four
        one = 0.9 * 0.01 + 0.1 * 0.4
        assert batcher._seconds_each == pytest.approx(0.9 * one + 0.1 * 0.4 / 4)
        await batcher.stop()

    run(work())


def test_the_first_queue_is_taken_for_a_hundred_requests_a_second(clock):
    gate = Gate(clock, takes_s=0.0)

    async def work():
        batcher = await started(gate, most=500, places=250)
        held = await gate.hold(batcher, waiting=250)
        with pytest.raises(QueueFullError, match="try again in 3 s"):
            await batcher.submit(2)
        gate.go_on.set()
        await asyncio.gather(*held)
        await batcher.stop()

    run(work())


def test_whoever_gives_up_while_it_is_answered_harms_nobody():
    faults = []

    async def work():
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        batcher = await started(doubled([], 0.2), most=8)
        first = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await batcher.submit(4) == 8
        await batcher.stop()

    run(work())
    assert faults == []


def test_a_loop_that_was_closed_ends_no_thread():
    going, go_on = threading.Event(), threading.Event()

    def answer(requests):
        going.set()
        assert go_on.wait(20)
        return requests

    batcher = Batcher(answer, BatchSettings())
    batcher.start()

    async def ask():
        asked = asyncio.create_task(batcher.submit(2))
        await asyncio.to_thread(going.wait, 20)
        asked.cancel()

    run(ask())
    go_on.set()

    async def again():
        assert await batcher.submit(4) == 4
        await batcher.stop()

    run(again())
