"""Options that several of the runtime's commands share."""

import math
import re
from itertools import pairwise

import click

from dgl_runtime.engines.candidates import AUTO, DEVICE_CHOICES, ENGINE_CHOICES

_UNITS_S = {
    "h": 3600.0,
    "m": 60.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 0.001,
}  # in the order they are said in
_FORMS = "90s, 1.5m, 1h30m, 500ms or 1:30"
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
        raise ValueError(f"{text!r} is not a time such as {_FORMS}.")
    return seconds


class Seconds(click.ParamType[float]):
    """A length of time above 0, or a moment, which may be 0, in any form of ``read_seconds``."""

    def __init__(self, *, may_be_0: bool = False) -> None:
        self.name = "time" if may_be_0 else "duration"
        self._may_be_0 = may_be_0

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds as a float."""
        try:
            seconds = read_seconds(str(value))
        except ValueError:
            seconds = -1.0
        if seconds < 0 or (seconds == 0 and not self._may_be_0):
            what = "time" if self._may_be_0 else "duration above 0"
            self.fail(f"{value!r} is not a {what} such as {_FORMS}.", param, ctx)
        return seconds


device_option = click.option(
    "--device",
    type=click.Choice(DEVICE_CHOICES),
    default="cpu",
    show_default=True,
    help="No fallback; auto is cuda where it works.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINE_CHOICES),
    default=AUTO,
    show_default=True,
    help="No fallback; auto is the fastest here.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 lets the engine choose."
)


def timestamp(seconds: float) -> str:
    """Seconds as h:mm:ss.s, or m:ss.s below an hour."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
