"""A PostgreSQL of its own with pgvector, from the package pgserver: started, killed, started again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import pgserver
import psycopg

from dgl_runtime.gallery.address import read_place

PASSWORD = "a-secret-of-tests"
_BIN = Path(pgserver.__file__).parent / "pginstall" / "bin"
_USER = "nobody"  # which PostgreSQL runs as where root runs the tests


def _as_somebody():
    return {"user": _USER, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


class Server:
    """Listens on this machine alone, with a password; its databases go when it is closed."""

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="dgl-postgres-"))
        self._data, self._numbers = self._folder / "data", count()
        (self._folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self._folder, self._folder / "password"):
                shutil.chown(path, _USER)
        subprocess.run(
            [
                *(_BIN / "initdb", "--pgdata", self._data, "--username", "postgres"),
                *("--auth", "scram-sha-256", "--pwfile", self._folder / "password"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **_as_somebody(),
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        """Start, and wait until it answers; after a kill its old processes may be in the way at first."""
        deadline = time.monotonic() + 60
        while True:
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(_BIN / "postgres", "-D", self._data, "-p", str(self.port)),
                        *("-h", "127.0.0.1", "-k", "", "-F"),
                    ],
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    **_as_somebody(),
                )
            while self._process.poll() is None:
                try:
                    self.connect().close()
                    return
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, (self._folder / "log").read_text()
                    time.sleep(0.05)
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.2)

    def connect(self):
        """A connection of a test's own."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=PASSWORD,
            dbname="postgres",
            autocommit=True,
        )

    def kill(self):
        """As the system's killer does it."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        """As its owner does it: what runs is broken off."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def close(self):
        if self._process.poll() is None:
            self.stop()
        shutil.rmtree(self._folder)

    def address(self, name=None, user="postgres", **options):
        """The address of a gallery, without the password: of a new one, if it has no name."""
        told = {**options, "gallery": name or f"made_{next(self._numbers)}"}
        query = "&".join(f"{key}={value}" for key, value in told.items())
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres?{query}"

    def place(self, name=None):
        """As ``address``, read."""
        return read_place(self.address(name))
