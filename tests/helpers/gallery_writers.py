"""Processes that write one gallery at once, as machines that index the same folder might."""

import multiprocessing

from dgl_runtime.gallery.address import open_or_create, read_place
from dgl_runtime.gallery.clips import FileState
from tests.helpers.made_galleries import MADE, batch

SPAWN = multiprocessing.get_context("spawn")


def write_at_once(address, orders):
    """A process for each order of batches; they begin together, and all must succeed."""
    ready, go = SPAWN.Semaphore(0), SPAWN.Event()
    writers = [SPAWN.Process(target=_write, args=(address, order, ready, go)) for order in orders]
    for writer in writers:
        writer.start()
    for _ in writers:
        assert ready.acquire(timeout=60)
    go.set()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0


def _write(address, numbers, ready, go):
    """Place, add, and of every third forget and add again; the last to forget a batch adds it again."""
    ready.release()
    go.wait()
    with open_or_create(read_place(address), **MADE) as gallery:
        for number in numbers:
            clips, embeddings, weights = batch(number)
            file = FileState(clips[0].video, 1, 1)
            for forgets in (False, True) if number % 3 == 0 else (False,):
                if forgets:
                    gallery.remove([file.path])
                gallery.upsert(file, clips[0].content_sha256, 60.0)
                gallery.ingest(clips, embeddings, weights)
            gallery.finish(clips[0].content_sha256, "whole")
