"""Times as people write them, and as they are printed."""

import math
import re
from itertools import pairwise

_UNITS_S = {
    "h": 3600.0,
    "m": 60.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 0.001,
}  # in the order they are said in
TIME_FORMS = "90s, 1.5m, 1h30m, 500ms or 1:30"
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PLAIN = re.compile(rf"{_NUMBER}(?:e[-+]?[0-9]+)?")
_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]{1,2}(?:\.[0-9]*)?)")
_PART = re.compile(rf"({_NUMBER})\s*(h|min|ms|m|s)\s*")


def read_seconds(text: str) -> float:
    """Seconds of a time as people and we write it: 90, 90s, 1.5m, 1h30m, 500ms, 1:30 or 1:00:00.5.

    Raises:
        ValueError: It is none.
    """
    told = text.strip().lower()
    seconds = math.inf
    if _PLAIN.fullmatch(told):
        seconds = float(told)
    elif clock := _CLOCK.fullmatch(told):
        hours, minutes, rest = float(clock[1] or 0), float(clock[2]), float(clock[3])
        if rest < 60 and (minutes < 60 or clock[1] is None):
            seconds = 3600 * hours + 60 * minutes + rest
    elif told and not _PART.sub("", told):
        parts = _PART.findall(told)
        sizes = [_UNITS_S[unit] for _, unit in parts]
        if all(large > small for large, small in pairwise(sizes)):
            seconds = sum(
                float(number) * size for (number, _), size in zip(parts, sizes, strict=True)
            )
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a time such as {TIME_FORMS}.")
    return seconds


def timestamp(seconds: float) -> str:
    """Seconds as h:mm:ss.s, or m:ss.s below an hour."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
