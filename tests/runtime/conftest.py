import pytest

from dgl_runtime.commands.index import index
from tests.helpers.commands import invoke
from tests.helpers.odd_videos import write_video


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
    invoke(index, bundle, videos, "--gallery", folder, "--window", "1s", "--stride", "500ms")
    return folder
