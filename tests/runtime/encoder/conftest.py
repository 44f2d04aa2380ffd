import itertools
from pathlib import Path

import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.encoder.triton_config import Placed
from dgl_runtime.encoder.triton_repository import write_repository
from tests.helpers.triton_server import Triton, server_of


@pytest.fixture(scope="session")
def triton_home(pytestconfig, tmp_path_factory):
    """Where a real Triton is unpacked."""
    pytest.importorskip("tritonclient.grpc")
    return server_of(Path(pytestconfig.cache.mkdir("triton")), tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="session")
def repository(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "repository"
    write_repository(Bundle(bundle), folder, Placed("cpu", 1, 1))
    return folder


@pytest.fixture(scope="session")
def new_triton(triton_home, tmp_path_factory):
    """Makes servers of repositories, which are to be started."""
    numbers, logs = itertools.count(), tmp_path_factory.mktemp("logs")
    return lambda folder, *options: Triton(
        triton_home, folder, logs / f"{next(numbers)}.log", *options
    )


@pytest.fixture(scope="module")
def triton(new_triton, repository):
    """A server of the bundle."""
    with new_triton(repository) as server:
        yield server
