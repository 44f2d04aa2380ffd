"""Which lines of one file run, and for whom; a copy named sitecustomize.py tells of processes that tests start.

A line of the trace is ``context<TAB>line``. Contexts: ``import``, ``test NODE``, ``fixture NAME``; and with
``process`` before it where a process ran the line that the test or fixture had started.
"""

import inspect
import os
import sys
import threading
from pathlib import Path

FILE, OUT, CONTEXT = "MUTATE_TRACED_FILE", "MUTATE_TRACE", "MUTATE_CONTEXT"


class LinesHit:
    """Write each line of the traced file once for each context."""

    def __init__(self, *, is_child: bool) -> None:
        self.file = os.environ[FILE]
        self.out = os.open(os.environ[OUT], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.pid = -1 if is_child else os.getpid()
        self.importing = 0
        self.seen: set[tuple[str, int]] = set()

    def start(self) -> None:
        sys.settrace(self._call)
        threading.settrace(self._call)

    def _call(self, frame, event, argument):
        if frame.f_code.co_filename != self.file:
            return None
        is_body = not frame.f_code.co_flags & inspect.CO_OPTIMIZED  # of a module or a class
        self.importing += is_body
        self._hit(frame.f_lineno)
        return self._in_body if is_body else self._in_function

    def _in_function(self, frame, event, argument):
        if event == "line":
            self._hit(frame.f_lineno)
        return self._in_function

    def _in_body(self, frame, event, argument):
        if event == "return":
            self.importing -= 1
        else:
            self._hit(frame.f_lineno)
        return self._in_body

    def _hit(self, line: int) -> None:
        context = os.environ.get(CONTEXT, "import")
        if self.importing:
            context = "import"
        elif os.getpid() != self.pid:  # started by, or forked from, what runs the tests
            context = f"process {context}"
        if (context, line) not in self.seen:
            self.seen.add((context, line))
            os.write(self.out, f"{context}\t{line}\n".encode())


def contexts_of_lines(trace: Path) -> dict[int, set[str]]:
    """Read a trace."""
    found: dict[int, set[str]] = {}
    for row in trace.read_text(encoding="utf-8").splitlines() if trace.exists() else ():
        context, _, line = row.rpartition("\t")
        found.setdefault(int(line), set()).add(context)
    return found


if __name__ == "sitecustomize" and FILE in os.environ:
    LinesHit(is_child=True).start()
