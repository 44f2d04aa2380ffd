"""Every command of the runtime in a folder whose name is no UTF-8; those of training: tests/export."""

import json
import os
import shutil
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.command import Command
from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.nearest import ApproximateIndex
from dgl_runtime.plain_path import plain_path
from tests.helpers.commands import run, start
from tests.helpers.made_galleries import BATCH, MADE, batch, through_graph
from tests.helpers.odd_videos import write_video

COMMANDS = {"index": index, "search": search, "verify": verify}
LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    """A bundle, two videos and their gallery."""
    folder = tmp_path_factory.mktemp("any") / LATIN
    shutil.copytree(bundle, folder / "bundle")
    for number in (0, 1):
        write_video(folder / "videos" / f"{LATIN}{number}.mp4", 20 + number)
    (folder / "videos" / f"broken {LATIN}.mp4").write_bytes(b"no video")
    options = ("--gallery", "g", "--window", "1s", "--report", f"{LATIN}.csv")
    code, out, err = run("index", "bundle", "videos", *options, cwd=folder)
    assert (code, err.count("\n")) == (1, 1)
    assert f"broken {LATIN}.mp4 is not a video" in err
    assert "4 clips added" in out
    assert f"broken {LATIN}.mp4" in (folder / f"{LATIN}.csv").read_text(errors="surrogateescape")
    return folder


def works(command, *arguments, **options):
    code, out, err = run(command, *map(str, arguments), **options)
    assert code == 0, err
    return out, err


ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not find_spec(package), reason=f"no {package}"))
    for name, package in (("onnx", "onnxruntime"), ("openvino", "openvino"))
]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bundle_is_verified_in_every_engine(folder, engine):
    out, _ = works("verify", folder / "bundle", "--engine", engine)
    assert out.startswith(f"{click.format_filename(folder)}/bundle: ")
    assert (folder / "bundle").is_dir()
    assert (
        Bundle(folder / "bundle").path("clip_encoder.onnx").is_file()
    )  # the way there is cleared, not it


def test_moments_are_found_and_shown(folder):
    (folder / "q").mkdir()
    (folder / "q" / f"{LATIN}.txt").write_text("a dog\na cat\n")
    sheet, page = folder / f"{LATIN}.png", folder / f"{LATIN}.html"
    out, err = works("search", folder / "g", "a dog", "--sheet", sheet, "--html", page)
    assert click.format_filename(f"{folder}/videos/{LATIN}1.mp4") in out
    assert err == f"Contact sheet: {sheet}\nPage: {page}\n"
    assert sheet.stat().st_size > 1000
    assert "videos/caf%E9" in page.read_text()
    queries = folder / "q" / f"{LATIN}.txt"
    like = f"{folder}/videos/{LATIN}1.mp4@0:00.5"
    options = ("--queries", queries, "--querybank", queries, "--bundle", folder / "bundle")
    out, _ = works("search", folder / "g", *options, "--like", like, "--json")
    found = json.loads(out)
    assert [one["query"] for one in found] == ["a dog", "a cat", like]
    assert found[2]["hits"][0]["video"].startswith(f"{folder}/videos/{LATIN}")
    assert max(hit["similarity"] for hit in found[2]["hits"]) > 0.999


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "absent", "a dog"),
        ("search", "g", "--like", f"absent {LATIN}.mp4"),
        ("search", "g", "a dog", "--queries", f"absent {LATIN}"),
        ("index", "bundle", f"absent {LATIN}", "--gallery", "g"),
        ("index", "videos", "videos", "--gallery", "g"),
        ("index", "bundle", "videos", "--gallery", "bundle"),
        ("index", "bundle", "videos", "--gallery", "g", "--metadata", f"{LATIN}.csv"),
        ("verify", "videos"),
        ("verify", f"absent {LATIN}"),
    ],
)
def test_what_is_wrong_is_one_line_that_a_strict_terminal_takes(folder, arguments):
    command, *rest = arguments
    where = [f"{folder}/{one}" if one != "a dog" and one[0] != "-" else one for one in rest]
    result = CliRunner().invoke(COMMANDS[command], where)
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert result.stderr_bytes.startswith(b"Error: ")
    assert result.stderr_bytes.count(b"\n") == 1
    assert b"caf\xe9" in result.stderr_bytes


def test_what_is_neither_text_nor_a_byte_is_printed_as_a_question_mark():
    @click.command(cls=Command)
    def say():
        click.echo(f"größe {LATIN} \ud800")
        click.echo(f"größe {LATIN} \ud800", err=True)

    result = CliRunner().invoke(say, [])
    assert result.stdout_bytes == result.stderr_bytes == "größe caf".encode() + b"\xe9 ?\n"


@contextmanager
def serving(gallery):
    with start("serve", str(gallery), "--port", "0", "--threads", "1") as process:
        said = process.stderr.readline()
        assert said.startswith("Serving "), said + process.stderr.read()
        yield f"http://127.0.0.1:{said.rpartition(':')[2].strip()}"


def test_a_gallery_is_served(folder):
    pytest.importorskip("fastapi")
    with serving(folder / "g") as address:

        def ask(path, body=None):
            data = None if body is None else json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(address + path, data, headers)
            return urllib.request.urlopen(request, timeout=60).read()

        (facts,) = json.loads(ask("/api/galleries"))
        assert (facts["name"], facts["videos"]) == ("g", 2)
        answer = json.loads(ask("/api/galleries/g/search", {"query": "a dog"}))
        moment = answer["moments"][0]
        assert moment["title"].startswith("caf?")
        assert ask(f"/api/galleries/g/clips/{moment['clip']}/thumbnail")[:2] == b"\xff\xd8"
        span = f"start_s={moment['start_s']}&end_s={moment['end_s']}"
        assert b"ftyp" in ask(f"/api/galleries/g/clips/{moment['clip']}/preview?{span}")[:12]
        assert b"ftyp" in ask(f"/api/galleries/g/videos/{moment['video']}")[:12]


def test_a_large_gallery_is_indexed_there(tmp_path):
    pytest.importorskip("usearch")
    with Gallery.create(tmp_path / LATIN, **MADE, store=through_graph()) as gallery:
        gallery.ingest(*batch(0))
        gallery.compact()
        index = ApproximateIndex.open(tmp_path / LATIN / "clips.0.usearch", gallery.embeddings())
        assert len(index) == BATCH
    with Gallery.open(tmp_path / LATIN, store=through_graph()) as gallery:
        rows, _ = gallery.search(batch(0)[1], 1)
    np.testing.assert_array_equal(rows[:, 0], range(4))


def test_a_plain_path_leads_to_the_same_file_and_is_taken_away(tmp_path):
    plain = tmp_path / "größe" / "a.txt"
    with plain_path(plain) as given:
        assert given is plain
    for path in (tmp_path / LATIN / "a.txt", tmp_path / LATIN / f"{LATIN}.txt"):
        path.parent.mkdir(exist_ok=True)
        with plain_path(path) as given:
            assert str(given).encode()
            assert given.suffix == ".txt"
            given.write_text("written")  # before it is there
            assert path.read_text() == given.read_text() == "written"
            (path.parent / "beside").touch()
        assert not os.path.lexists(given)
        assert path.read_text() == "written"
    with plain_path(tmp_path / LATIN / "a.txt") as given:
        assert (given.parent / "beside").exists()
    with plain_path(tmp_path / LATIN / f"a.{LATIN}") as given:
        assert str(given).encode()


def test_a_plain_path_from_the_current_folder_on(tmp_path, monkeypatch):
    (tmp_path / LATIN).mkdir()
    (tmp_path / LATIN / "a").write_text("there")
    monkeypatch.chdir(tmp_path)
    with plain_path(Path(LATIN, "a")) as given:
        assert given.read_text() == "there"
