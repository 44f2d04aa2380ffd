"""One Retriever for threads that search while another adds videos: one gallery, open as long as it is used."""

import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from dgl_runtime import Retriever
from dgl_runtime import retriever as module
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.shared import Shared
from tests.helpers.odd_videos import write_video


@pytest.fixture
def retriever(bundle, videos, tmp_path):
    with Retriever(bundle, tmp_path / "gallery", threads=1) as opened:
        opened.add_videos([videos])
        yield opened


@pytest.fixture
def opened(monkeypatch):
    """Galleries, as they are opened for reading."""
    made, real = [], Gallery.open.__func__

    def wrapper(cls, folder, *, writable=False, **how):
        gallery = real(cls, folder, writable=writable, **how)
        if not writable:
            made.append(gallery)
        return gallery

    monkeypatch.setattr(Gallery, "open", classmethod(wrapper))
    return made


def is_closed(gallery):
    try:
        gallery.files()
    except GalleryError:
        return True
    return False


def test_threads_that_search_first_together_open_the_gallery_once(retriever, opened):
    retriever.embed_texts(["warm up"])
    barrier = Barrier(4)

    def search(number):
        barrier.wait()
        return retriever.search("a dog") if number % 2 else retriever.gallery.facts.version

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(search, range(4)))
    assert len(opened) == 1
    assert found[::2] == [opened[0].facts.version] * 2
    assert len(found[1]) == 3
    assert found[1] == found[3]
    retriever.close()
    assert is_closed(opened[0])


def test_a_search_that_runs_while_videos_are_added_finishes_and_later_ones_find_them(
    retriever, opened, tmp_path, monkeypatch
):
    searching, added = Event(), Event()
    real = module.find_moments

    def slow(*asked):
        if not added.is_set():
            searching.set()
            assert added.wait(60)
        return real(*asked)

    monkeypatch.setattr(module, "find_moments", slow)
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(retriever.search, "a dog")
        assert searching.wait(60)
        retriever.add_videos([write_video(tmp_path / "new.mp4", 50)])
        added.set()
        assert len(before.result()) == 3
    (first,) = opened
    assert is_closed(first)
    assert len(retriever.search("a dog")) == 4


def test_a_search_finds_what_was_there_while_videos_are_added(retriever, tmp_path, monkeypatch):
    found, real = [], Encoder.embed_clips

    def search_first(self, frames):
        with ThreadPoolExecutor(1) as pool:
            found.extend(pool.submit(retriever.search, "a dog").result())
        return real(self, frames)

    monkeypatch.setattr(Encoder, "embed_clips", search_first)
    retriever.add_videos([write_video(tmp_path / "new.mp4", 50)])
    assert len(found) == 3
    assert len(retriever.search("a dog")) == 4


def test_the_log_is_taken_up_after_a_search_and_an_addition(retriever, tmp_path):
    """A gallery at rest is one file of records, which can be copied and put where nobody may write."""
    retriever.search("a dog")
    retriever.add_videos([write_video(tmp_path / "new.mp4", 50)])
    assert not list(retriever.gallery_place.glob("*-wal"))


class Thing:
    def __init__(self):
        self.is_closed = False

    def close(self):
        assert not self.is_closed
        self.is_closed = True


def test_a_thing_is_closed_when_it_is_old_and_its_last_user_has_gone():
    shared = Shared(Thing)
    assert shared.newest is None
    with shared.look() as first:
        with shared.look() as same:
            assert same is first is shared.newest is shared.open()
            shared.put(Thing())
            assert not first.is_closed
            assert shared.newest is not first
        assert not first.is_closed
    assert first.is_closed
    with shared.look() as second:
        shared.close()
        shared.close()
        assert not second.is_closed
    assert second.is_closed
    third = shared.open()
    shared.close()
    assert third.is_closed


def test_one_that_failed_while_it_looked_has_gone():
    shared = Shared(Thing)
    with pytest.raises(ValueError, match="no"), shared.look() as thing:
        raise ValueError("no")
    shared.close()
    assert thing.is_closed


def test_users_come_and_go_in_many_threads():
    shared, wrong = Shared(Thing), []

    def use():
        for number in range(300):
            with shared.look() as thing:
                if number % 7 == 0:
                    shared.put(Thing())
                if thing.is_closed:
                    wrong.append(thing)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
