"""The commands on a gallery in PostgreSQL do what they do on one in a folder."""

import json
import shutil
import subprocess
import sys

import pytest

from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from tests.helpers.commands import failure, invoke, run
from tests.helpers.indexed import assert_same, contents
from tests.helpers.odd_videos import write_video

WINDOWS = ("--window", "1s", "--stride", "500ms", "--threads", "1")


def found(gallery, *arguments):
    """What a search says, but for the numbers of clips."""
    told = json.loads(invoke(search, gallery, *arguments, "--json", "--threads", "1"))
    for query in told:
        for hit in query["hits"]:
            del hit["row"]
            # In the last digits embeddings depend on what was encoded beside them.
            hit["similarity"] = round(hit["similarity"], 4)
            hit["frame_weights"] = [round(weight, 4) for weight in hit["frame_weights"]]
    return told


@pytest.fixture
def folder(tmp_path, videos):
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "list.csv").write_text("video,camera\nvideos/video0.mp4,north\n")
    (tmp_path / "bank").write_text("a dog\na cat\nthe sea\n")
    return tmp_path


def test_index_and_search_do_the_same(bundle, folder, postgres):
    address, local = postgres.address(), folder / "gallery"
    for gallery in (address, local):
        arguments = (bundle, folder / "videos", "--gallery", gallery, *WINDOWS)
        metadata = ("--metadata", folder / "list.csv")
        said = invoke(index, *arguments, *metadata)
        assert "3 videos: 15 clips added, 0 already indexed, 0 videos broken." in said
        assert f"{gallery} holds 15 clips." in said
        assert "metadata of 1 videos taken" in said
        assert "0 clips added, 15 already indexed" in invoke(index, *arguments)
    assert_same(contents(address), contents(local))
    picture = folder / "videos" / "video1.mp4"
    for arguments in (
        ("a dog", "the sea", "--top", "3"),
        ("a dog", "--where", "camera = 'north'"),
        ("a dog", "--from", "1s", "--until", "2s", "--group", "none"),
        ("a dog", "--querybank", folder / "bank", "--group", "merge"),
        ("--like", f"{picture}@1s", "--top", "2"),
    ):
        assert found(address, *arguments) == found(local, *arguments)


def test_renamed_changed_and_deleted_videos_are_followed(bundle, folder, postgres):
    address, local = postgres.address(), folder / "gallery"
    for gallery in (address, local):
        invoke(index, bundle, folder / "videos", "--gallery", gallery, *WINDOWS)
    (folder / "videos" / "video0.mp4").rename(folder / "videos" / "renamed.mp4")
    (folder / "videos" / "video1.mp4").unlink()
    write_video(folder / "videos" / "video2.mp4", 45)
    for gallery in (address, local):
        said = invoke(index, bundle, folder / "videos", "--gallery", gallery, *WINDOWS, "--prune")
        assert "1 removed" in said
    assert_same(contents(address), contents(local))


def test_a_server_that_is_away_is_one_line(bundle, videos, own_postgres):
    address = own_postgres.address()
    invoke(index, bundle, videos, "--gallery", address, *WINDOWS)
    own_postgres.stop()
    for command, *arguments in (
        ("index", bundle, videos, "--gallery", address),
        ("search", address, "a dog"),
        ("serve", address, "--port", "0"),
    ):
        told, _ = failure(command, *arguments)
        assert told.startswith(f"gallery {address} cannot be reached: connection")
        assert "a-secret-of-tests" not in told


def test_a_gallery_that_is_not_there_is_one_line(postgres):
    address = postgres.address()
    told, _ = failure("search", address, "a dog")
    assert told.startswith(f"{address} is not a gallery")


def test_a_password_in_the_address_is_refused_without_being_said(bundle, videos, postgres):
    address = postgres.address().replace("postgres@", "postgres:hush-hush@")
    code, out, err = run("index", str(bundle), str(videos), "--gallery", address)
    assert code == 2
    assert "holds a password, which everybody on this machine can read" in err
    assert "hush-hush" not in out + err


def test_a_machine_without_the_extra_is_told_what_to_install(bundle, videos, postgres):
    hidden = "import sys; sys.modules['psycopg'] = None"
    told, _ = failure("search", postgres.address(), "a dog", before=hidden)
    assert told.endswith("Install it with: pip install 'dgl-retrieval[postgres]'")


def test_a_gallery_in_a_folder_needs_nothing_of_it(gallery):
    code = (
        "import sys\n"
        "from dgl_runtime.gallery.address import open_gallery, read_place\n"
        f"open_gallery(read_place({str(gallery)!r})).close()\n"
        "assert not {'psycopg', 'pgvector', 'sqlglot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
