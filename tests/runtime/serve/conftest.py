"""A small library of videos, indexed, and a service of it."""

import shutil

import pytest

from dgl_runtime import Retriever
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.described_client import serve
from tests.helpers.odd_videos import write_video


@pytest.fixture(scope="session")
def library(bundle, tmp_path_factory):
    """Four videos with metadata, and their gallery."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "videos").mkdir()
    for number in range(3):
        write_video(folder / "videos" / f"{number}.mp4", 40 + number, codec="libx264")
    write_video(folder / "videos" / "größe.avi", 30)
    (folder / "videos" / "list.csv").write_text("video,camera\n0.mp4,north\n1.mp4,south\n")
    with Retriever(bundle, folder / "gallery", threads=1) as retriever:
        retriever.add_videos([folder / "videos"], window_s=1.0, stride_s=0.5)
    with Gallery.open(folder / "gallery", writable=True) as gallery:
        gallery.upsert_metadata(folder / "videos" / "list.csv", print)
    return folder


@pytest.fixture
def own_library(library, tmp_path):
    """A copy of the gallery that a test may change."""
    shutil.copytree(library / "gallery", tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture(scope="module")
def client(bundle, library):
    with serve(bundle, library / "gallery") as client:
        yield client
