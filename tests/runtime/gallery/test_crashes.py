"""Galleries under crashes, kills and a full disk."""

import os
import random
import resource
import signal
import time
from unittest import mock

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.made_galleries import (
    BATCH,
    VECTORS,
    PowerCut,
    assert_holds,
    batch,
    clips_of,
    contents,
    gallery_of,
    start_writer,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a gallery that took three batches without any trouble."""
    return contents(gallery_of(tmp_path_factory.mktemp("undisturbed"), 3))


@pytest.mark.parametrize("extra", [0, 1, 4, 17, 32, 33, 0.5, 1.0])
@pytest.mark.parametrize("name", VECTORS)
def test_a_torn_append_is_ignored_by_readers_and_cut_by_the_next_writer(
    tmp_path, undisturbed, name, extra
):
    folder = gallery_of(tmp_path, 2)
    committed = contents(folder)
    # files are written in the order of VECTORS: those before ``name`` are whole, the rest untouched
    for number, file in enumerate(VECTORS[: VECTORS.index(name) + 1]):
        added = undisturbed[1][number][len(committed[1][number]) :]
        size = len(added)
        if file == name:
            size = extra if isinstance(extra, int) else int(extra * len(added))
        with (folder / file).open("ab") as opened:
            opened.write(added[:size])
    with Gallery.open(folder) as reader:
        assert len(reader) == 2 * BATCH
        np.testing.assert_array_equal(reader.search(batch(1)[1], 1)[0][:, 0], [4, 5, 6, 7])
    assert_holds(folder, 2)
    assert contents(folder) == committed
    with Gallery.open(folder, writable=True) as writer:
        writer.ingest(*batch(2))
    assert contents(folder) == undisturbed


def test_remains_of_a_compaction_that_was_killed_are_removed(tmp_path):
    folder = gallery_of(tmp_path, 2)
    committed = contents(folder)
    for name in VECTORS:
        (folder / name.replace(".0.", ".1.")).write_bytes(b"half")
    (folder / "clips.7.usearch.tmp").write_bytes(b"x")
    assert_holds(folder, 2)
    assert contents(folder) == committed
    assert not list(folder.glob("*.1.*"))
    assert not list(folder.glob("*.7.*"))


@pytest.mark.parametrize("lost", [1, 4, 31, 32, 33, 100])
@pytest.mark.parametrize("name", VECTORS)
def test_a_file_that_lost_committed_bytes_is_refused(tmp_path, name, lost):
    folder = gallery_of(tmp_path, 2)
    os.truncate(folder / name, max(0, (folder / name).stat().st_size - lost))
    for writable in (False, True):
        with pytest.raises(GalleryError, match=rf"{name} is damaged: it holds \d+ .*Restore it"):
            Gallery.open(folder, writable=writable)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PowerCut()])
@pytest.mark.parametrize("step", range(2))
def test_an_append_that_stops_at_any_sync_leaves_the_gallery_valid(
    tmp_path, undisturbed, step, error
):
    folder = gallery_of(tmp_path, 2)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == step + 1:
            raise error
        real(descriptor)

    gallery = Gallery.open(folder, writable=True)
    with mock.patch("os.fsync", fsync), pytest.raises((GalleryError, PowerCut)) as caught:
        gallery.ingest(*batch(2))
    if caught.type is GalleryError:
        assert "could not take 4 clips: [Errno 28] No space left" in str(caught.value)
        assert len(gallery) == len(gallery.embeddings()) == 2 * BATCH
        gallery.ingest(*batch(2))
        gallery.close()
    else:
        gallery.close()
        assert_holds(folder, 2)
        with Gallery.open(folder, writable=True) as again:
            again.ingest(*batch(2))
    assert contents(folder) == undisturbed


@pytest.mark.parametrize("room", [9, 6000])
def test_a_full_disk_is_one_line_and_the_gallery_goes_on(tmp_path, room):
    """Of the vectors, or of the records: SQLite's log grows by pages of 4096 bytes."""
    folder = gallery_of(tmp_path / "full", 2)
    largest = max(path.stat().st_size for path in folder.glob("*.f32"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Gallery.open(folder, writable=True) as gallery:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, hard))
        try:
            with pytest.raises(
                GalleryError, match=r"could not take|cannot be read or written"
            ) as caught:
                gallery.ingest(*batch(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(gallery.search(batch(1)[1], 1)[0][:, 0], [4, 5, 6, 7])
        gallery.ingest(*batch(2))
    assert_holds(folder, 3)


def test_a_writer_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    folder = gallery_of(tmp_path / "killed", 0)
    moments = random.Random(5)
    for _ in range(6):
        with start_writer(folder, 100_000) as writer:
            writer.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            reported = writer.stdout.read().splitlines()
        with Gallery.open(folder) as gallery:
            assert len(gallery) % BATCH == 0
            num_batches = len(gallery) // BATCH
        if reported:
            assert num_batches in (int(reported[-1]) + 1, int(reported[-1]) + 2)
        assert_holds(folder, num_batches)
    with start_writer(folder, num_batches + 2) as writer:
        writer.stdout.read()
    assert writer.returncode == 0
    assert contents(folder) == contents(gallery_of(tmp_path / "whole", num_batches + 2))


def test_readers_see_whole_batches_while_a_writer_appends(tmp_path):
    folder = gallery_of(tmp_path, 0)
    expected = np.concatenate([batch(number)[1] for number in range(60)])
    sizes = []
    with start_writer(folder, 60) as writer:
        while not sizes or sizes[-1] < len(expected):
            with Gallery.open(folder) as gallery:
                sizes.append(len(gallery))
                assert len(gallery) % BATCH == 0
                np.testing.assert_array_equal(gallery.embeddings(), expected[: len(gallery)])
                assert gallery.search(expected[:1], 1)[0].tolist() == [[0] if len(gallery) else []]
            assert writer.poll() in (None, 0)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


class InterruptedAt:
    """A connection that is told to stop right after it has run some statement, as by Ctrl-C."""

    def __init__(self, connection, statement):
        self._connection, self._statement = connection, statement

    def execute(self, sql, *values):
        done = self._connection.execute(sql, *values)
        if sql == self._statement:
            raise KeyboardInterrupt
        return done

    def __getattr__(self, name):
        return getattr(self._connection, name)


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_ctrl_c_while_records_are_written_leaves_the_state_before_or_after(tmp_path, statement):
    folder = gallery_of(tmp_path, 4)
    with Gallery.open(folder, writable=True) as gallery:
        gallery.remove([clips[0].video for clips, *_ in map(batch, (0, 1))])
        real = gallery._records._connection
        gallery._records._connection = InterruptedAt(real, statement)
        with pytest.raises(KeyboardInterrupt):
            gallery.compact()
        with pytest.raises(KeyboardInterrupt):
            gallery.ingest(*batch(5))
        gallery._records._connection = real
        there = len(gallery)
        assert there == (3 if statement == "COMMIT" else 2) * BATCH
        gallery.ingest(*batch(6))  # the same object goes on where the records are
    with Gallery.open(folder) as gallery:
        clips = [clip for _, clip in clips_of(gallery)]
        numbers = [2, 3, *([5] if statement == "COMMIT" else []), 6]
        assert clips == [clip for number in numbers for clip in batch(number)[0]]
        for row, clip in clips_of(gallery):
            number = int(clip.content_sha256, 16)
            found = gallery.embeddings()[row]
            assert any(np.array_equal(found, one) for one in batch(number)[1])
