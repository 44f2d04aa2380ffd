"""Options that several of the runtime's commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgl_runtime.engines.candidates import AUTO, DEVICE_CHOICES, ENGINE_CHOICES
from dgl_runtime.engines.triton_address import FORM, TritonAddress
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.postgres.address import PostgresAddress
from dgl_runtime.times import TIME_FORMS, read_seconds

if TYPE_CHECKING:
    from dgl_runtime.gallery.address import Place


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


class GalleryPlace(click.ParamType["Place"]):
    """A gallery's folder or address; one with a password is refused, which others could read."""

    name = "gallery"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Place":
        """The folder, or the address."""
        from dgl_runtime.gallery.address import read_place

        if isinstance(value, Path | PostgresAddress):
            return value
        try:
            place = read_place(str(value))
        except GalleryError as error:
            self.fail(str(error), param, ctx)
        if isinstance(place, PostgresAddress) and place.has_password:
            self.fail(
                f"the address of {place} holds a password, which everybody on this machine can read in the "
                "list of processes. Put it into PGPASSWORD, or into a file that PGPASSFILE names.",
                param,
                ctx,
            )
        return place


class EngineName(click.Choice[str]):
    """An engine of this machine, or a server, whose address is read when the bundle is opened."""

    def __init__(self) -> None:
        super().__init__(ENGINE_CHOICES)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """All forms."""
        return f"[{'|'.join((*ENGINE_CHOICES, FORM))}]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """The name as it is."""
        name = str(value)
        return name if TritonAddress.is_one(name) else super().convert(name, param, ctx)


device_option = click.option(
    "--device",
    type=click.Choice(DEVICE_CHOICES),
    default="cpu",
    show_default=True,
    help="No fallback; auto: cuda where it works.",
)
engine_option = click.option(
    "--engine",
    type=EngineName(),
    default=AUTO,
    show_default=True,
    help="No fallback; auto: the fastest here.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 lets the engine choose."
)
