"""Two replicas behind a real nginx, with the configuration of the docs: one killed, one rolled, under load."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest

from dgl_runtime import Retriever
from tests import ROOT
from tests.helpers.served import CODE

pytestmark = pytest.mark.slow
CONFIG = ROOT / "docs" / "nginx.conf"
LOAD = ROOT / "benchmarks" / "dgl_bench" / "serve_load.lua"
SEARCH = "/api/galleries/gallery/search"
LOAD_S = 15
WAIT_S = 60


@pytest.fixture(scope="module")
def address(bundle, videos, postgres):
    address = postgres.address("gallery")
    with Retriever(bundle, address, threads=1) as retriever:
        retriever.add_videos([videos], window_s=1.0, stride_s=0.5)
    return address


def free_ports(count):
    with_ports = [socket.socket() for _ in range(count)]
    for one in with_ports:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return ports


class Replica:
    """A dgl-serve that can be ended and started again at the same port."""

    def __init__(self, address, port):
        self.address, self.port = address, port
        self.start()

    def start(self):
        arguments = [self.address, "--port", str(self.port), "--threads", "1", "--drain", "1"]
        command = [sys.executable, "-c", CODE, *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def end(self, how):
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said


def ask(port, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def await_ready(port):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if ask(port, "/ready") == {"ready": True}:
                return
        time.sleep(0.05)
    raise AssertionError("not ready")


@contextmanager
def nginx(folder, port, replicas):
    """nginx with the configuration of the docs, without TLS and at our ports."""
    text = CONFIG.read_text("utf-8").replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    text = re.sub(r"\n *ssl_.*", "", text)
    for theirs, replica in zip(("8001", "8002"), replicas, strict=True):
        assert text.count(f"127.0.0.1:{theirs}") == 1
        text = text.replace(f"127.0.0.1:{theirs}", f"127.0.0.1:{replica.port}")
    (folder / "ours.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    inside = f"access_log off; {paths} include {folder}/ours.conf;"
    main = f"pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ {inside} }}"
    (folder / "nginx.conf").write_text(main)
    command = ["nginx", "-p", folder, "-e", folder / "errors", "-c", folder / "nginx.conf"]
    process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.PIPE, text=True)
    try:
        await_ready(port)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)


@pytest.mark.skipif(not CONFIG.exists(), reason="the configuration is in the checkout only")
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx: apt-get install nginx")
def test_no_request_fails_while_a_replica_is_killed_and_another_rolled(address, tmp_path):
    port, *ports = free_ports(3)
    killed, rolled = replicas = [Replica(address, one) for one in ports]
    try:
        for replica in replicas:
            await_ready(replica.port)
        with nginx(tmp_path, port, replicas):
            wanted = {"query": "a dog", "top": 5}
            answers = [ask(one, SEARCH, wanted)["moments"] for one in (*ports, port)]
            assert len(answers[0]) == 5
            assert answers[0] == answers[1] == answers[2]
            load = subprocess.Popen(
                ["wrk", "-t1", "-c16", f"-d{LOAD_S}s", "-s", LOAD, f"http://127.0.0.1:{port}"],
                env={**os.environ, "COUNT": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            time.sleep(2)
            assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
            killed.start()
            await_ready(killed.port)
            assert load.poll() is None
            code, said = rolled.end(signal.SIGTERM)
            assert code == 0, said
            assert said.endswith("Stopped; all accepted requests were answered.\n")
            rolled.start()
            await_ready(rolled.port)
            assert load.poll() is None
            told = json.loads(load.communicate(timeout=WAIT_S)[0].splitlines()[-1])
            errors = (tmp_path / "errors").read_text()
        assert "upstream" in errors  # there was something to get over
        failed = ("failed", "refused", "status_errors", "socket_errors", "timeouts")
        assert dict.fromkeys(failed, 0) == {name: told[name] for name in failed}, errors
        assert told["answered"] > 100, told
    finally:
        for replica in replicas:
            replica.process.kill()
            replica.process.communicate()
