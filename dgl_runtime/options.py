"""Options that several of the runtime's commands share."""

import math
import re

import click

from dgl_runtime.engines.candidates import AUTO, DEVICE_CHOICES, ENGINE_CHOICES

UNITS_S = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType[float]):
    """A duration such as 10, 10s, 1.5m or 500ms."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds as a float above 0."""
        match = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", str(value).strip())
        try:
            seconds = float(match[1]) * UNITS_S[match[2]] if match else 0.0
        except (ValueError, KeyError):
            seconds = 0.0
        if not 0 < seconds < math.inf:
            self.fail(
                f"{value!r} is not a duration above 0 such as 10s, 1.5m or 500ms.", param, ctx
            )
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
