"""The log on stderr: what comes from one place again and again is written now and then, with a count."""

import logging
import time
from collections.abc import Hashable
from typing import Any

EVERY_S = 10.0


class Throttle(logging.Filter):
    """Lets one message of a place through, then none for some seconds; the next says how many went."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        super().__init__()
        self._every_s = every_s
        self._told: dict[Hashable, tuple[float, int]] = {}  # when, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it."""
        key = record.pathname, record.lineno, _raised_at(record)
        told_s, held_back = self._told.get(key, (float("-inf"), 0))
        now_s = time.monotonic()
        if now_s - told_s < self._every_s:
            self._told[key] = told_s, held_back + 1
            return False
        self._told[key] = now_s, 0
        if held_back:
            record.msg, record.args = (
                f"{record.getMessage()} (and {held_back} times more before)",
                (),
            )
        return True


def _raised_at(record: logging.LogRecord) -> Hashable:
    """Where an error comes from, as all tracebacks are logged by the same few lines."""
    if not record.exc_info or (raised := record.exc_info[2]) is None:
        return None
    while raised.tb_next is not None:
        raised = raised.tb_next
    return raised.tb_frame.f_code, raised.tb_lineno


# For logging.config.dictConfig.
SETTINGS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"throttle": {"()": Throttle}},
    "formatters": {"line": {"format": "%(levelname)s: %(message)s"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "filters": ["throttle"],
            "formatter": "line",
        }
    },
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
