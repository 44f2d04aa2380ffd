"""Ending a run between two steps when a person or a scheduler asks for it."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """Notes Ctrl-C or SIGTERM, to be asked between two steps; the second one ends at once."""

    def __init__(self) -> None:
        self.is_set = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.is_set = True
        signal.signal(number, self._before[number])
