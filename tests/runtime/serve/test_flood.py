"""More connections than there are files for: others are answered meanwhile, and the log stays short."""

import json
import logging
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from dgl_runtime import Retriever
from dgl_runtime.errors import ConfigError
from dgl_runtime.serve import connections, log
from dgl_runtime.serve.connections import Room, raise_file_limit, room_left
from tests.helpers.flood import FLOODS, ask, files_of, flood, limited, processor_s
from tests.helpers.odd_videos import write_video
from tests.helpers.served import CODE, serving

pytestmark = pytest.mark.slow

AT = "/api/galleries/gallery"
OPEN_FILES = 64


@pytest.fixture(scope="module")
def gallery(bundle, tmp_path_factory):
    """Of one video that no buffer of a connection holds."""
    folder = tmp_path_factory.mktemp("flood")
    video = write_video(folder / "a.mp4", 30, codec="libx264")
    with video.open("ab") as file:
        file.write((8 + 2**24).to_bytes(4, "big") + b"free" + bytes(2**24))
    with Retriever(bundle, folder / "gallery", threads=1) as retriever:
        retriever.add_videos([video])
    return folder / "gallery"


def assert_all_is_answered(port, gallery):
    ask(port, "/health")
    answer, _ = ask(port, f"{AT}/search", b'{"query": "a dog"}')
    one = json.loads(answer)["moments"][0]
    assert ask(port, f"{AT}/clips/{one['clip']}/thumbnail")[0].startswith(b"\xff\xd8")
    assert b"ftyp" in ask(port, f"{AT}/clips/{one['clip']}/preview?start_s=0&end_s=1")[0][:12]
    video = (gallery.parent / "a.mp4").read_bytes()
    assert ask(port, f"{AT}/videos/{one['video']}")[0] == video
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    body += video[: 2**21] + b"\r\n--x--\r\n"
    found, _ = ask(port, f"{AT}/like", body, "multipart/form-data; boundary=x")
    assert json.loads(found)["moments"]


def stopped(process):
    """What it has said when it was asked to stop."""
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert said.endswith("Stopped; all accepted requests were answered.\n")
    return said


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_beyond_the_open_files_keeps_nobody_out(gallery, kind):
    with serving(gallery, before=limited(OPEN_FILES)) as (process, port):
        ask(port, "/health")
        used_s = processor_s(process)
        with flood(port, 100, kind):
            assert_all_is_answered(port, gallery)
            assert files_of(process) < OPEN_FILES
        _, recovery_s = ask(port, "/health")
        assert recovery_s < 2
        assert processor_s(process) - used_s < 5
        said = stopped(process)
        assert "no more can be: of those that wait for their client the oldest is closed" in said
        assert said.count("\n") <= 4
        assert "Traceback" not in said


def test_two_thousand_connections_fit_a_usual_limit(gallery):
    """The soft limit, 256, is raised to the hard one."""
    with serving(gallery, before=limited(256, 4096)) as (process, port):
        with flood(port, 1900, "idle"):
            ask(port, "/health")
            assert files_of(process) > 1900
        assert stopped(process).count("\n") == 1


def test_files_that_run_out_all_the_same_stop_nothing(gallery):
    """As if the reserve had been used up: accepting itself finds no file left."""
    too_much = "import dgl_runtime.serve.connections as c; c.room_left = lambda: c.Room(1000)"
    with serving(gallery, before=f"{limited(OPEN_FILES)}; {too_much}") as (process, port):
        ask(port, "/health")
        used_s = processor_s(process)
        with flood(port, 200, "idle"):
            _, first_s = ask(port, "/health")
            assert first_s < 5
        time.sleep(0.5)
        assert processor_s(process) - used_s < 3
        assert ask(port, "/health")[1] < 2
        said = stopped(process)
        assert "cannot accept a connection: [Errno 24] Too many open files" in said
        assert len(said) < 2000


def test_one_that_works_is_not_closed_for_one_that_knocks(gallery):
    """A client that is answered keeps its connection, however many come meanwhile."""
    with serving(gallery, before=limited(OPEN_FILES)) as (_, port):
        ask(port, "/health")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            path = f"{AT}/clips/0/preview?start_s=0&end_s=1"
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(0.05)  # it is read, and takes longer
            with flood(port, 100, "idle"):
                assert b"200 OK" in one.recv(2**16)


def test_the_limit_of_open_files_is_raised_and_shared_out(monkeypatch):
    limits = (100, 200)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(connections, "_files_open", lambda: 20)
    kept = 20 + connections.FILES_IN_RESERVE
    for limit, room in ((kept + 8, 4), (kept + 9, 4), (kept + 10, 5), (10**6, 2048)):
        limits = (limit, 10**7)
        assert room_left().connections == room
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert room_left().connections == 2048
    limits = (kept + 7, 10**7)
    with pytest.raises(ConfigError, match=f"is {kept + 7}, at least {kept + 8} are needed"):
        room_left()
    assert [Room(n).requests for n in (4, 10, 2048)] == [2, 8, 1792]
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    raise_file_limit()
    assert asked == [(10**7, 10**7)]
    monkeypatch.setattr(resource, "setrlimit", lambda *_: (_ for _ in ()).throw(ValueError))
    raise_file_limit()  # not granted: it stays


def test_too_few_files_are_said_on_one_line(gallery):
    code = f"{limited(40)}; {CODE}"
    command = [sys.executable, "-c", code, gallery, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the limit of open files is 40, at least ")
    assert done.stderr.endswith(" are needed. Raise it: ulimit -n 1024\n")
    assert done.stderr.count("\n") == 1


def test_what_is_logged_again_and_again_is_counted(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now_s)
    throttle, written = log.Throttle(10.0), []

    def say(line, error=None):
        info = (type(error), error, error.__traceback__) if error else None
        record = logging.LogRecord("x", logging.WARNING, "x.py", line, "%s!", ("no",), info)
        if throttle.filter(record):
            written.append(record.getMessage())

    for _ in range(5):
        say(1)
    say(2)
    assert written == ["no!", "no!"]
    now_s += 10.0
    say(1)
    say(1)
    assert written[2:] == ["no! (and 4 times more before)"]
    now_s += 10.0
    say(2)
    assert written[3:] == ["no!"]

    def fail(number):
        if number:
            raise ValueError
        raise TypeError

    for number in (0, 1, 0, 1):
        with pytest.raises((TypeError, ValueError)) as raised:
            fail(number)
        say(3, raised.value)
    assert len(written) == 6
