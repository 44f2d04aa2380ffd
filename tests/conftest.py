import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dgl_runtime.decoding.decode_process import DecodeProcess

MAKE_FIXTURES = Path(__file__).parent / "make_fixtures.py"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory):
    """No test reads or fills the caches of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """Also by what the tests start: a shell has its background jobs ignore it, and they pass that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fixtures_dir(tmp_path_factory):
    """Three bundles, and a gallery of the first; without torch, DGL_TEST_FIXTURES brings them."""
    given = os.environ.get("DGL_TEST_FIXTURES")
    folder = Path(given) if given else tmp_path_factory.mktemp("fixtures") / "made"
    if not given:
        made = subprocess.run(
            [sys.executable, MAKE_FIXTURES, folder], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
    for name in ("bundle", "int8_bundle", "other_bundle", "gallery"):
        assert (folder / name).is_dir(), f"DGL_TEST_FIXTURES={given} holds no {name}"
    return folder


@pytest.fixture
def no_hang():
    """A test that waits for more than two minutes fails."""

    def end(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def started_decoders(monkeypatch):
    """The processes that decode, as they are started."""
    started = []
    real = DecodeProcess.start.__func__
    monkeypatch.setattr(
        DecodeProcess,
        "start",
        classmethod(lambda cls, *given: started.append(real(cls, *given)) or started[-1]),
    )
    return started


@pytest.fixture(scope="session")
def bundle(fixtures_dir):
    return fixtures_dir / "bundle"


@pytest.fixture(scope="session")
def other_bundle(fixtures_dir):
    return fixtures_dir / "other_bundle"
