import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgl_runtime import cli

from .commands import invoke
from .odd_videos import write_video

MAKE_FIXTURES = Path(__file__).parents[1] / "make_fixtures.py"


@pytest.fixture(scope="session")
def fixtures_dir(tmp_path_factory):
    """Two bundles, and a gallery of the first; without torch, DGL_TEST_FIXTURES brings them."""
    given = os.environ.get("DGL_TEST_FIXTURES")
    folder = Path(given) if given else tmp_path_factory.mktemp("fixtures") / "made"
    if not given:
        made = subprocess.run(
            [sys.executable, MAKE_FIXTURES, folder], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
    for name in ("bundle", "other_bundle", "gallery"):
        assert (folder / name).is_dir(), f"DGL_TEST_FIXTURES={given} holds no {name}"
    return folder


@pytest.fixture(scope="session")
def bundle(fixtures_dir):
    return fixtures_dir / "bundle"


@pytest.fixture(scope="session")
def other_bundle(fixtures_dir):
    return fixtures_dir / "other_bundle"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Three videos of 2, 3 and 4 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_video(folder / f"video{number}.mp4", 20 + 10 * number)
    return folder


@pytest.fixture(scope="session")
def gallery(bundle, videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "gallery"
    invoke(cli.index, bundle, videos, "--gallery", folder, "--window", "1s", "--stride", "500ms")
    return folder
