"""dgl-serve as a process: it starts, says what is wrong on one line, and stops without losing a request."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError

import pytest

from tests.helpers.served import CODE, serving

NUM_SEARCHES = 48


def ask(port, text):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/galleries/gallery/search",
        json.dumps({"query": text}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, json.load(answer)["moments"]


def waiting(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        line = next(
            x for x in answer.read().decode().splitlines() if x.startswith("dgl_searches_waiting ")
        )
    return float(line.split()[1])


def until_ready(port):
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60):
                return
        except URLError:
            time.sleep(0.05)
    raise AssertionError("not ready")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_was_accepted(library, how):
    with serving(library / "gallery", "--batch", "1") as (process, port):
        until_ready(port)
        with ThreadPoolExecutor(NUM_SEARCHES) as pool:
            process.send_signal(signal.SIGSTOP)  # so that all of them have come before it goes on
            asked = [pool.submit(ask, port, f"number {n}") for n in range(NUM_SEARCHES)]
            time.sleep(1)
            process.send_signal(signal.SIGCONT)
            while not waiting(port):
                assert not all(one.done() for one in asked)
            process.send_signal(how)
            answers = [one.result(60) for one in asked]
        assert all(status == 200 and moments for status, moments in answers)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err == "Stopped; all accepted requests were answered.\n"
        with pytest.raises(URLError):
            ask(port, "too late")


def failure(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_is_wrong_is_said_on_one_line(library, tmp_path):
    assert "is not a gallery" in failure(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = failure(library / "gallery", "--port", taken.getsockname()[1])
        assert "Address already in use" in said
        assert "--port" in said
    said = failure(library / "gallery", "--host", "0.0.0.0")
    assert "a token is needed" in said
    assert "cannot listen at 192.0.2.1" in failure(
        library / "gallery", "--host", "192.0.2.1", "--token-file", _token(tmp_path)
    )
    assert "is not a bundle" in failure(library / "gallery", "--bundle", tmp_path)


def _token(folder):
    (folder / "token").write_text("a-token-of-some-length")
    return folder / "token"
