"""The address of a gallery in PostgreSQL: postgresql://USER@HOST:PORT/DATABASE?gallery=NAME."""

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from dgl_runtime.errors import GalleryError

SCHEMES = ("postgresql://", "postgres://")
FORM = "postgresql://USER@HOST:PORT/DATABASE?gallery=NAME"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")
_SECRETS = ("password", "sslpassword")


@dataclass(frozen=True)
class PostgresAddress:
    """Where a gallery lies; as text it holds no password.

    Attributes:
        gallery: Its name in the database.
        has_password: Whether the address that was given held a password.
        conninfo: What libpq takes, with all its options (sslmode, passfile, ...).
        shown: The address without passwords.
    """

    gallery: str
    has_password: bool
    conninfo: str = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; messages repeat nothing of it that may be a password.

        Raises:
            GalleryError: It is none.
        """
        _, _, rest = text.partition("://")
        if re.search("%(?![0-9A-Fa-f]{2})", rest):
            raise GalleryError(
                f"an address such as {FORM} has a % before two hexadecimal digits alone, this has another. "
                "Write a % itself as %25."
            )
        place, _, query = rest.partition("?")
        authority, slash, database = place.partition("/")
        if rest.count("@") != authority.count("@") or rest.count("@") > 1:
            raise GalleryError(
                f"an address such as {FORM} has one @ before the host, this has others too. Write @ / ? "
                "in a name or a password as %40 %2F %3F."
            )
        options = [option for option in query.split("&") if option]
        names = [value for key, value in map(_split, options) if key == "gallery"]
        if len(names) != 1 or not _NAME.fullmatch(unquote(names[0])):
            raise GalleryError(
                f"an address of PostgreSQL must name one gallery, got {len(names)}: {names}, expected "
                f"{FORM} with a NAME of up to 50 letters a-z, digits, - and _."
            )
        user, at, hosts = authority.rpartition("@")
        name, _, password = user.partition(":")
        given = [option for option in options if _split(option)[0] != "gallery"]
        open_to_all = [option for option in given if _split(option)[0] not in _SECRETS]
        shown = "&".join([*open_to_all, f"gallery={names[0]}"])
        conninfo = f"postgresql://{place}" + (f"?{'&'.join(given)}" if given else "")
        return cls(
            gallery=unquote(names[0]),
            has_password=bool(password) or len(open_to_all) < len(given),
            conninfo=conninfo,
            shown=f"postgresql://{name}{at}{hosts}{slash}{database}?{shown}",
        )

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text is meant as such an address."""
        return text.startswith(SCHEMES)

    def __str__(self) -> str:
        return self.shown


def _split(option: str) -> tuple[str, str]:
    key, _, value = option.partition("=")
    return unquote(key), value
