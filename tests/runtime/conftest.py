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


@pytest.fixture(scope="session")
def _password_of_postgres():
    """Where a user would have it, and so the commands that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", "a-secret-of-tests")
        yield


def _started():
    for module in ("pgserver", "psycopg", "pgvector", "sqlglot"):
        pytest.importorskip(module, reason="the tests of PostgreSQL need the extra postgres")
    from tests.helpers.postgres_server import Server

    return Server()


@pytest.fixture(scope="session")
def postgres(_password_of_postgres):
    """A PostgreSQL that all tests of a run share; none stops it."""
    server = _started()
    yield server
    server.close()


@pytest.fixture
def own_postgres(_password_of_postgres):
    """A PostgreSQL that a test may kill."""
    server = _started()
    yield server
    server.close()
