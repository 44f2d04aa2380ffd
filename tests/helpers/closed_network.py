"""A machine without a network, whose name server counts questions and never answers.

Run as a program under unshare, it makes the namespaces it was given such a machine and keeps them until
its stdin ends. For each line that it reads there it prints what was asked and tried since it began.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMESPACES = ("--net", "--mount", "--uts")
PROGRAMS = ("ip", "mount", "nsenter", "unshare")


def why_not():
    """Why this machine cannot have such namespaces; empty if it can."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, the names it asked for, and how often it tried what is off the machine."""

    exit_code: int
    output: str
    questions: list[str]
    strays: int

    def asked_nothing(self):
        """Fail unless it succeeded without a question or a try."""
        assert self.exit_code == 0, self.output
        assert (self.questions, self.strays) == ([], 0), self.output


class ClosedNetwork:
    """Runs commands in the namespaces of a process of this file's."""

    def __init__(self, holder):
        self._holder = holder

    def python(self, folder, code, arguments=(), **variables):
        """Run Python code to its end, in a folder, for a user whose home is ``home`` in it.

        Nothing is in its environment that would keep a library still, such as CI.
        """
        kept = {
            name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
        }
        before = self._counts()
        enter = ["nsenter", "--target", str(self._holder.pid), *NAMESPACES, f"--wdns={folder}"]
        done = subprocess.run(
            [*enter, sys.executable, "-c", code, *map(str, arguments)],
            env={**kept, "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        after = self._counts()
        questions = after["questions"][len(before["questions"]) :]
        strays = after["strays"] - before["strays"]
        return Outcome(done.returncode, done.stdout, questions, strays)

    def _counts(self):
        self._holder.stdin.write("\n")
        self._holder.stdin.flush()
        return json.loads(self._holder.stdout.readline())


@contextmanager
def closed_network():
    """Such a machine, for as long as the context lasts."""
    with subprocess.Popen(
        ["unshare", *NAMESPACES, sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        yield ClosedNetwork(holder)
        holder.stdin.close()


def main():
    """Close the namespaces this process is in, and report until stdin ends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket.sethostname("closed")  # which no file knows
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
        settings.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        settings.flush()
        place = os.path.realpath("/etc/resolv.conf")
        subprocess.run(["mount", "--bind", settings.name, place], check=True)
        questions = []
        threading.Thread(target=listen, args=(server, questions), daemon=True).start()
        for _ in sys.stdin:
            report = {"questions": questions, "strays": strays()}
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()


def listen(server, questions):
    """Keep every name that is asked for."""
    while True:
        packet = server.recv(4096)
        labels, at = [], 12  # behind the header: each label's length, then the label
        while packet[at]:
            labels.append(packet[at + 1 : at + 1 + packet[at]].decode("ascii", "replace"))
            at += 1 + packet[at]
        questions.append(".".join(labels))


def strays():
    """The kernel's count, in this namespace, of what had no way to go."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    newer = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(values[names.index("OutNoRoutes")]) + int(newer.get("Ip6OutNoRoutes", 0))


if __name__ == "__main__":
    main()
