"""A real Triton server, out of a published package that has the Python backend alone; ours is put beside it."""

import hashlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path

import pytest

WHEEL, SHA256 = "nvidia-pytriton==0.7.0", "21f063ff93bb426d"
BACKEND = Path(__file__).parent / "triton_onnxruntime.py"
# Its Python backend loads the system's Python, which then imports packages of ours.
SYSTEM_PYTHON = Path("/usr/bin/python3")
READY_S = 60


def server_of(cache, folder):
    """Unpack the server, with a backend for our models; skips where it cannot. ``cache`` keeps its wheel."""
    _require_machine()
    if not any(cache.glob("*.whl")):
        fetched = folder / "fetched"  # whole before it is moved: other processes look for it too
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL]
        done = subprocess.run(
            [*command, "--dest", fetched], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"{WHEEL} cannot be downloaded here: {done.stderr.strip()[-200:]}")
        for wheel in fetched.iterdir():
            moved = cache / f"{os.getpid()}.part"
            shutil.move(wheel, moved)
            moved.replace(cache / wheel.name)
    (wheel,) = cache.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest().startswith(SHA256)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    home = folder / "pytriton" / "tritonserver"
    backends = home / "backends"
    stub = home / "python_backend_stubs" / f"3.{sys.version_info.minor}"
    stub /= "triton_python_backend_stub"
    stub.chmod(0o755)
    (home / "bin" / "tritonserver").chmod(0o755)
    (backends / "python" / stub.name).symlink_to(stub)  # it finds its libraries from where it is
    (backends / "onnxruntime").mkdir()
    shutil.copy(BACKEND, backends / "onnxruntime" / "model.py")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (backends / "onnxruntime" / "paths").write_text("\n".join(packages))
    return home


def _require_machine():
    minor = sys.version_info.minor
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"{WHEEL} is for Linux on x86-64")
    if find_library(f"python3.{minor}") is None or not SYSTEM_PYTHON.exists():
        pytest.skip(f"Triton's Python backend needs the system's Python 3.{minor} and its library")
    asked = [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info.minor)"]
    if (found := subprocess.check_output(asked, text=True).strip()) != str(minor):
        pytest.skip(f"the system's Python is 3.{found}, the tests run in 3.{minor}")


class Triton:
    """A server of one repository, at one port, which it keeps when it is started again."""

    def __init__(self, home, repository, log, *options):
        self.home, self.repository, self.log, self.options = home, repository, log, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process = None

    @property
    def address(self):
        return f"localhost:{self.port}"

    def start(self):
        """Start it, and wait until it listens: it does so when its models have been warmed up."""
        command = [self.home / "bin" / "tritonserver", "--model-repository", self.repository]
        command += ["--backend-directory", self.home / "backends"]
        command += ["--disable-auto-complete-config", "--allow-http=false", "--allow-metrics=false"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={self.port}", *self.options]
        # Its Python looks for its own library where the first python3 is.
        environment = {**os.environ, "PATH": "/usr/bin:/bin"}
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + READY_S
        while not self._listens():
            told = self.log.read_text()
            assert self._process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        return self

    def _listens(self):
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self):
        """As the machine's end would."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its backends are processes too
            self._process.wait()
            self._process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()
