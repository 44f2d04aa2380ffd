"""Processes side by side: killed while idle, stopped in the middle of a message, and none to be had."""

import os
import resource
import signal
import threading
import time

import pytest

from dgl_runtime.decoding.decode_pool import Clips, DecodePool, Done, Job
from dgl_runtime.decoding.decode_process import Limits
from dgl_runtime.decoding.read_ahead import read_ahead
from dgl_runtime.errors import MediaError
from dgl_runtime.media.segmentation import Segmentation
from tests.helpers.odd_videos import write_video
from tests.helpers.specs import frame_spec

PATIENCE_S = 60

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{number}.mp4", 40) for number in range(3)]


def test_a_process_killed_while_it_has_nothing_to_do_costs_no_video(videos, started_decoders):
    with DecodePool(Segmentation(1.0), frame_spec(4, 32), jobs=1) as pool:
        for video in videos:
            found = list(pool.read([Job(video)], lambda seen: [0]))
            assert [one.fault for one in found if isinstance(one, Done)] == [None]
            started_decoders[-1].process.kill()
            started_decoders[-1].process.wait()
    assert len(started_decoders) == len(videos)


def test_a_process_that_stops_in_the_middle_of_a_message_is_given_up(videos, started_decoders):
    """4 clips of 64 frames of 224 pixels do not fit into a socket: it is stopped as it sends them."""
    limits = Limits(silent_s=2.0)
    with DecodePool(Segmentation(1.0), frame_spec(64, 224), jobs=1, limits=limits) as pool:
        reading = pool.read([Job(videos[0]), Job(videos[1])], lambda seen: range(4))
        next(reading)
        (first,) = started_decoders
        assert first.line.poll(PATIENCE_S)
        time.sleep(0.2)
        os.kill(first.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        found = list(reading)
    assert time.monotonic() - begun < PATIENCE_S
    faults = [one.fault for one in found if isinstance(one, Done)]
    assert "took more than 2 s without any progress" in faults[0]
    assert faults[1] is None
    assert sum(isinstance(one, Clips) for one in found) == 1


def test_that_no_process_can_be_started_is_told_on_one_line(videos):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, limits[1]))
        with (
            DecodePool(Segmentation(), frame_spec(4, 32), jobs=1) as pool,
            pytest.raises(MediaError) as caught,
        ):
            list(pool.read([Job(videos[0])], lambda seen: [0]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(held[0])
    assert str(caught.value).startswith(
        "no process that decodes videos can be started: [Errno 24] Too many open files. Let fewer run"
    )


def test_what_was_read_before_a_failure_is_handed_over_first():
    def items():
        yield from (1, 2)
        raise MediaError("lost")

    reading = read_ahead(items(), lambda: None, most=8)
    taken = list(next(reading))
    time.sleep(0.2)
    while len(taken) < 2:
        taken += next(reading)
    assert taken == [1, 2]
    with pytest.raises(MediaError, match="lost"):
        next(reading)


def test_what_waits_weighs_no_more_than_was_said():
    first_is_taken, full, read = threading.Event(), threading.Event(), []

    def items():
        yield 0
        assert first_is_taken.wait(PATIENCE_S)
        for number in range(12):
            read.append(number)
            if number == 4:  # 0, 3, 0 and 3 wait, and this one may not join them
                full.set()
            yield 3 if number % 2 else 0

    reading = read_ahead(items(), lambda: None, most=6, weigh=lambda item: item)
    assert next(reading) == [0]
    first_is_taken.set()
    assert full.wait(PATIENCE_S)
    time.sleep(0.1)  # in which it would read on
    assert read == [0, 1, 2, 3, 4]
    assert [item for some in reading for item in some] == [0, 3] * 6
