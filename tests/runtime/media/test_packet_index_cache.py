"""Packet indexes that took long to read are kept on disk, and found again for the same state of a file."""

import os

import numpy as np
import pytest

from dgl_runtime.media import packet_index, packet_index_cache
from dgl_runtime.media.packet_index import read_index
from tests.helpers.odd_videos import write_video


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packet_index, "_KEEP_FROM_S", 0.0)
    packet_index._read_index.cache_clear()
    return tmp_path / "cache/dgl-retrieval/packets"


@pytest.fixture
def passes(monkeypatch):
    """The files that were read."""
    read, seen = packet_index.read_pass, []
    monkeypatch.setattr(packet_index, "read_pass", lambda path: seen.append(path) or read(path))
    return seen


def read_anew(path):
    packet_index._read_index.cache_clear()
    return read_index(path)


@pytest.mark.parametrize("name", ["b.mp4", "b.avi", "b.h264", "joined.ts"])
def test_an_index_is_read_once_and_found_the_same(tmp_path, passes, name):
    path = write_video(tmp_path / name, 30, codec="libx264", b_frames=2)
    if name == "joined.ts":
        path.write_bytes(2 * path.read_bytes())
    first, second = read_anew(path), read_anew(path)
    assert passes == [path]
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(second, name), value)
        assert type(getattr(second, name)) is type(value)


def test_a_quick_one_is_not_kept(tmp_path, passes, monkeypatch, cache):
    monkeypatch.setattr(packet_index, "_KEEP_FROM_S", 60.0)
    path = write_video(tmp_path / "b.mp4", 3)
    assert len(read_anew(path).shown) == len(read_anew(path).shown) == 3
    assert len(passes) == 2
    assert not cache.exists()


@pytest.mark.parametrize("what", ["content", "time"])
def test_a_file_that_changed_is_read_again(tmp_path, passes, what):
    path = write_video(tmp_path / "b.mp4", 3)
    read_anew(path)
    if what == "content":
        state = path.stat()
        write_video(path, 4)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert len(read_anew(path).shown) == 4
    else:
        os.utime(path, (1, 1))
        read_anew(path)
    assert len(passes) == 2


@pytest.mark.parametrize("content", [b"", b"no index", b"PK\x03\x04"])
def test_a_damaged_one_is_read_again_and_replaced(tmp_path, passes, cache, content):
    path = write_video(tmp_path / "b.mp4", 3)
    read_anew(path)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert len(read_anew(path).shown) == len(read_anew(path).shown) == 3
    assert len(passes) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(read_anew(write_video(tmp_path / "b.mp4", 3)).shown) == 3


def test_the_ones_used_last_stay(tmp_path, monkeypatch, cache, passes):
    videos = [write_video(tmp_path / f"{number}.mp4", 3) for number in range(3)]
    for number, video in enumerate(videos[:2]):
        read_anew(video)
        for file in cache.iterdir():
            if file.stat().st_mtime > 1e9:
                os.utime(file, (number, number))
    read_anew(videos[0])  # used again
    size = max(file.stat().st_size for file in cache.iterdir())
    monkeypatch.setattr(packet_index_cache, "_MOST_BYTES", 2 * size + size // 2)
    read_anew(videos[2])
    assert len(list(cache.iterdir())) == 2
    passes.clear()
    for video in (videos[0], videos[2], videos[1]):
        read_anew(video)
    assert passes == [videos[1]]


def test_what_another_pyav_read_is_read_again(tmp_path, passes, monkeypatch):
    path = write_video(tmp_path / "b.mp4", 3)
    read_anew(path)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.0")
    read_anew(path)
    assert len(passes) == 2


def test_half_a_gibibyte_is_kept(tmp_path, cache):
    read_anew(write_video(tmp_path / "b.mp4", 3))
    (made,) = cache.iterdir()
    for number in range(2):
        with (cache / f"{number}").open("wb") as file:
            file.truncate(2**28)
        os.utime(cache / f"{number}", (number, number))
    os.truncate(cache / "1", 2**28 - made.stat().st_size)
    packet_index_cache._make_room(cache)
    assert len(list(cache.iterdir())) == 3
    os.truncate(cache / "1", 2**28 - made.stat().st_size + 1)
    packet_index_cache._make_room(cache)
    assert {file.name for file in cache.iterdir()} == {"1", made.name}


def test_of_an_index_that_cannot_be_put_in_its_place_nothing_stays(tmp_path, cache):
    path = write_video(tmp_path / "b.mp4", 3)
    state = path.stat()
    place = packet_index_cache._file(str(path.resolve()), state.st_size, state.st_mtime_ns)
    place.mkdir(parents=True)
    assert len(read_anew(path).shown) == 3
    assert list(cache.iterdir()) == [place]
