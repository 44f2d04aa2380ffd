"""A small library of videos, indexed, and a service of it."""

import re
import shutil

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

from dgl_runtime import Retriever
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.metadata import read_metadata
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


class DescribedClient(TestClient):
    """Holds every answer against the description of the service."""

    def __init__(self, app, description):
        super().__init__(app, base_url="http://localhost")
        self._told = description
        self._paths = {
            re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))): item
            for path, item in description["paths"].items()
        }

    def _operation(self, path, method):
        for pattern, item in self._paths.items():
            if pattern.fullmatch(path):
                return item.get(method.lower())
        return None

    def _fits(self, schema, value):
        whole = {**schema, "components": self._told["components"]}
        return jsonschema_rs.validator_for(whole).is_valid(value)

    def describes(self, path, body):
        """Whether a JSON body is one that the description allows."""
        operation = self._operation(path, "post")
        return self._fits(operation["requestBody"]["content"]["application/json"]["schema"], body)

    def request(self, method, url, **settings):
        answer = super().request(method, url, **settings)
        operation = self._operation(answer.request.url.path, method)
        if operation is None:
            return answer
        said = operation["responses"][str(answer.status_code)]
        for name, header in said.get("headers", {}).items():
            assert not header.get("required") or name in answer.headers
        if answer.status_code == 204:
            assert not answer.content
            return answer
        kind = answer.headers["content-type"].partition(";")[0]
        schema = said["content"][kind]["schema"]
        if kind == "application/json":
            assert self._fits(schema, answer.json()), (schema, answer.text)
        return answer


def serve(bundle, folder, **settings):
    served = ServedGallery("holiday", folder, Retriever(bundle, threads=1))
    guard = settings.pop("guard", GuardSettings(HOSTS))
    app = create_app([served], ServeSettings(guard, **settings))
    bearer = {"authorization": f"Bearer {guard.token}"}
    description = TestClient(app, "http://localhost").get("/openapi.json", headers=bearer).json()
    return DescribedClient(app, description)


@pytest.fixture(scope="module")
def client(bundle, library):
    with serve(bundle, library / "gallery") as client:
        yield client
