"""Options that several of the runtime's commands share."""

import click

from dgl_runtime.engines.candidates import AUTO, DEVICE_CHOICES, ENGINE_CHOICES
from dgl_runtime.times import TIME_FORMS, read_seconds


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
            self.fail(f"{value!r} is not a {what} such as {TIME_FORMS}.", param, ctx)
        return seconds


device_option = click.option(
    "--device",
    type=click.Choice(DEVICE_CHOICES),
    default="cpu",
    show_default=True,
    help="No fallback; auto: cuda where it works.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINE_CHOICES),
    default=AUTO,
    show_default=True,
    help="No fallback; auto: the fastest here.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 lets the engine choose."
)
