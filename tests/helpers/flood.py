"""A flood of connections against a running dgl-serve, and what it answers meanwhile.

python -m tests.helpers.flood GALLERY [CONNECTIONS [OPEN_FILES]]
"""

import resource
import socket
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError

from tests.helpers.served import serving

# What each connection of a flood sends, and then nothing more. None of them ever reads.
FLOODS = {
    "idle": b"",
    "slow head": b"GET / HTTP/1.1\r\nHost: localh",
    "slow body": b"POST /api/galleries/gallery/search HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
    "slow reader": b"GET /api/galleries/gallery/videos/1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def limited(soft, hard=None):
    """Python that limits the open files of the process that runs it."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard or soft}))"


@contextmanager
def flood(port, connections, kind):
    """That many connections of a kind, all at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as closing:
        for _ in range(connections):
            one = closing.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            one.sendall(FLOODS[kind])
        yield


def ask(port, path, data=None, content_type="application/json", patience_s=10.0):
    """Ask as a client does that tries again when it is told so; the answer and the seconds it took."""
    started = time.perf_counter()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    request.add_header("content-type", content_type)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.read(), time.perf_counter() - started
        except HTTPError as error:
            if error.code != 503 or time.perf_counter() - started > patience_s:
                raise
            time.sleep(0.05)


def processor_s(process):
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main(gallery, connections="2000", open_files="64"):
    """Print for each kind of flood how long an answer takes before, during and after it."""
    for kind in FLOODS:
        with serving(gallery, before=limited(open_files)) as (process, port):
            before = [ask(port, "/health")[1] for _ in range(21)][
                1:
            ]  # the first one waits for the start
            with flood(port, int(connections), kind):
                first = ask(port, "/health")[1]
                during = [ask(port, "/health")[1] for _ in range(20)]
            after = ask(port, "/health")[1]
            process.terminate()
            log = process.stderr.read()
        figures = {
            "before": max(before),
            "first during": first,
            "later during": max(during),
            "first after": after,
        }
        told = {name: f"{1000 * seconds:.0f} ms" for name, seconds in figures.items()}
        sys.stdout.write(f"{kind}: {told}, log {len(log)} bytes\n")


def files_of(process):
    """How many it has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


if __name__ == "__main__":
    main(*sys.argv[1:])
