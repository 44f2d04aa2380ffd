"""A small library of videos, indexed, and a service of it."""

import shutil

import pytest
from fastapi.testclient import TestClient

from dgl_runtime import Retriever
from dgl_runtime.gallery import Gallery
from dgl_runtime.gallery_metadata import read_metadata
from dgl_runtime.serve.app import ServeSettings, create_app
from dgl_runtime.serve.galleries import ServedGallery
from dgl_runtime.serve.guard import GuardSettings
from tests.runtime.odd_videos import write_video

HOSTS = frozenset({"localhost", "127.0.0.1"})


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
        read_metadata(gallery.records, folder / "videos" / "list.csv")
    return folder


@pytest.fixture
def own_library(library, tmp_path):
    """A copy of the gallery that a test may change."""
    shutil.copytree(library / "gallery", tmp_path / "gallery")
    return tmp_path / "gallery"


def serve(bundle, folder, **settings):
    served = ServedGallery("holiday", folder, Retriever(bundle, threads=1))
    guard = settings.pop("guard", GuardSettings(HOSTS))
    return TestClient(
        create_app([served], ServeSettings(guard, **settings)), base_url="http://localhost"
    )


@pytest.fixture(scope="module")
def client(bundle, library):
    with serve(bundle, library / "gallery") as client:
        yield client
