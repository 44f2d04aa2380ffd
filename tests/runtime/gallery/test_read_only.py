"""Galleries where nothing can be written: at rest, or left by a writer that was killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dgl_runtime
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import as_a_user
from tests.helpers.made_galleries import BATCH, assert_holds, batch, gallery_of

READ = """import sys
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.gallery import Gallery
try:
    with Gallery.open(sys.argv[1], writable=len(sys.argv) > 2) as gallery:
        rows = gallery.select("1").nonzero()[0]
        print(len(gallery), len(gallery.look_up(rows)), gallery.is_newest())
except GalleryError as error:
    print(error)
"""
MOUNT = """
mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && ! touch "$2/new" 2> /dev/null && shift 2 && exec "$@"
"""


def may_mount():
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


needs_mount = pytest.mark.skipif(
    not shutil.which("unshare") or not may_mount(), reason="needs root, to mount a folder read-only"
)


def read(folder, *options, prefix=()):
    """What a process of its own says of a gallery: its clips, counted twice, or why not."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", READ, str(folder), *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])},
    )
    return done.stdout.strip()


def read_mounted(folder, *options):
    """Read through a mount that is read-only for everybody, root too; also where that is."""
    at = folder.with_name("mounted")
    at.mkdir(exist_ok=True)
    prefix = ("unshare", "-m", "bash", "-c", MOUNT, "mount", folder, at)
    return read(at, *options, prefix=prefix), at


@pytest.fixture
def killed(tmp_path):
    """A gallery of two batches whose second is in the log alone, as a killed writer leaves it."""
    folder = gallery_of(tmp_path / "g", 1)
    with Gallery.open(folder, writable=True) as writer:
        writer.ingest(*batch(1))
        left = shutil.copytree(folder, tmp_path / "killed")
    assert (left / "gallery.sqlite-wal").stat().st_size
    return left


@needs_mount
def test_a_gallery_at_rest_is_read_where_nothing_can_be_written(tmp_path):
    found, _ = read_mounted(gallery_of(tmp_path / "g", 2))
    assert found == f"{2 * BATCH} {2 * BATCH} True"


@needs_mount
def test_what_a_killed_writer_left_is_read_where_nothing_can_be_written(killed):
    found, _ = read_mounted(killed)
    assert found == f"{2 * BATCH} {2 * BATCH} True"


@needs_mount
def test_without_its_shared_file_the_right_remedy_is_named_and_works(killed, tmp_path):
    (killed / "gallery.sqlite-shm").unlink()
    found, at = read_mounted(killed)
    assert found == (
        f"gallery {at} was left by a writer that was killed (or still runs), and what it wrote last "
        "cannot be read here, where gallery.sqlite-shm is missing and cannot be made. Copy the folder to where "
        "it can be written and search the copy, or run dgl-index on it there once."
    )
    assert_holds(shutil.copytree(killed, tmp_path / "copy"), 2)
    Gallery.open(killed, writable=True).close()
    assert read_mounted(killed)[0] == f"{2 * BATCH} {2 * BATCH} True"


@needs_mount
def test_a_writer_says_that_it_cannot_write(killed):
    found, at = read_mounted(killed, "writable")
    assert found == (
        f"gallery {at} cannot be opened: [Errno 30] Read-only file system: '{at}/writer.lock'."
    )


def test_a_log_that_may_not_be_read_is_named(killed):
    for name in ("gallery.sqlite-wal", "gallery.sqlite-shm"):
        (killed / name).chmod(0)
        found = read(killed, prefix=as_a_user())
        (killed / name).chmod(0o644)
        assert found == (
            f"gallery {killed} was left by a writer that was killed (or still runs), and {name} may not "
            "be read. Change its permissions."
        )
    assert read(killed, prefix=as_a_user()) == f"{2 * BATCH} {2 * BATCH} True"
