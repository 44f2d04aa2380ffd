"""A bundle and a gallery that commit e8f5187 wrote still verify, search and grow."""

import json

import numpy as np
import pytest

from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import invoke
from tests.helpers.odd_videos import write_video
from tests.helpers.old_files import copy_of, unpack


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("files"))


@pytest.fixture
def gallery(old, tmp_path):
    return copy_of(old / "gallery", tmp_path)


def find(old, gallery, *options):
    queries = [one["query"] for one in expected(old)]
    found = invoke(search, gallery, *queries, "--bundle", old / "bundle", "--json", *options)
    return json.loads(found)


def expected(old):
    return json.loads((old / "found.json").read_text("utf-8"))


def test_the_bundle_verifies(old):
    checked = json.loads(invoke(verify, old / "bundle", "--json"))
    assert checked["files"] == 6
    assert checked["id"] == "f1549965ab367f96"
    assert all(graph["max_abs"] < 1e-5 for graph in checked["graphs"])


def test_the_gallery_gives_the_hits_it_gave(old, gallery):
    found, before = find(old, gallery, "--top", "3"), expected(old)
    for now, then in zip(found, before, strict=True):
        assert now["query"] == then["query"]
        for hit, was in zip(now["hits"], then["hits"], strict=True):
            for numbers in ("similarity", "frame_weights"):
                np.testing.assert_allclose(hit.pop(numbers), was.pop(numbers), atol=1e-5)
            assert hit == was


def test_a_video_is_added_beside_those_it_has(old, gallery, tmp_path):
    write_video(old / "videos" / "video2.mp4", 15)
    invoke(index, old / "bundle", old / "videos", "--gallery", gallery, "--window", "1s")
    with Gallery.open(gallery) as opened:
        assert len(opened) == 7
    hits = find(old, gallery, "--group", "none", "--top", "7")[0]["hits"]
    assert sorted(hit["row"] for hit in hits) == list(range(7))
