"""dgl-index into PostgreSQL, its server or itself killed in the middle: nothing lost, each clip once."""

import time
from contextlib import suppress

import pytest

from dgl_runtime import Retriever
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.address import open_gallery, read_place
from tests.helpers.commands import start
from tests.helpers.indexed import assert_same, contents
from tests.helpers.odd_videos import write_video

VIDEOS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(VIDEOS):
        write_video(folder / f"{number}.mp4", 30 + number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(bundle, folder, tmp_path_factory):
    gallery = tmp_path_factory.mktemp("undisturbed") / "gallery"
    with Retriever(bundle, gallery, threads=1) as retriever:
        retriever.add_videos([folder], window_s=1.0, stride_s=0.5)
    return contents(gallery)


def clips_in(place):
    with open_gallery(place) as gallery:
        return len(gallery)


def until(place, count):
    """Wait until somebody has added so many clips."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(GalleryError):  # it is not there yet, or its server is away
            if clips_in(place) >= count:
                return
        time.sleep(0.02)
    raise AssertionError(f"no {count} clips in time")


def indexing(bundle, folder, address):
    options = (
        "--window",
        "1s",
        "--stride",
        "500ms",
        "--threads",
        "1",
        "--batch",
        "2",
        "--jobs",
        "1",
    )
    return start("index", str(bundle), str(folder), "--gallery", address, *options)


def test_a_server_that_is_killed_twice_costs_nothing(bundle, folder, undisturbed, own_postgres):
    address = own_postgres.address()
    with indexing(bundle, folder, address) as process:
        for count in (2, 20):
            until(read_place(address), count)
            own_postgres.kill()
            own_postgres.start()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{VIDEOS} videos: " in out
    assert_same(contents(address), undisturbed)


def test_one_that_is_killed_is_resumed_by_another(bundle, folder, undisturbed, postgres):
    address = postgres.address()
    with indexing(bundle, folder, address) as process:
        until(read_place(address), 10)
        process.kill()
    with Retriever(bundle, address, threads=1) as retriever:
        report = retriever.add_videos([folder], window_s=1.0, stride_s=0.5)
        assert report.clips_present >= 10
        assert report.clips_added + report.clips_present == len(undisturbed)
    assert_same(contents(address), undisturbed)


def test_two_at_once_do_the_work_of_one(bundle, folder, undisturbed, postgres):
    address = postgres.address()
    with indexing(bundle, folder, address) as one, indexing(bundle, folder, address) as other:
        for process in (one, other):
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    assert_same(contents(address), undisturbed)
