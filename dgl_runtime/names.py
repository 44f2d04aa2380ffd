"""Names of files as people read them: names that are equal in Unicode's composed form (NFC) are equal.

A disk may hold é as one letter or as e with an accent, and a list the other. The name as given wins where
both exist. Names that differ in case or in look-alike characters are others, but they are told.
"""

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


def nfc(text: str) -> str:
    """The composed form, in which é is one character."""
    return unicodedata.normalize("NFC", text)


def _alike(text: str) -> str:
    """Equal for texts that differ in form only: case, width, ligatures."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class Named(Generic[Thing]):
    """Things by name."""

    def __init__(self, things: Mapping[str, Thing]) -> None:
        self._things = things
        self._composed: dict[str, str] = {}
        self._look: dict[str, str] = {}
        for name in sorted(things):
            self._composed.setdefault(nfc(name), name)
            self._look.setdefault(_alike(name), name)

    def name_of(self, name: str) -> str | None:
        """The name itself if something has it, else one equal in NFC."""
        return name if name in self._things else self._composed.get(nfc(name))

    def find(self, name: str) -> Thing | None:
        """What has this name."""
        found = self.name_of(name)
        return None if found is None else self._things[found]

    def similar(self, name: str) -> str | None:
        """A name that is the same, or differs in case or form only."""
        return self.name_of(name) or self._look.get(_alike(name))


class Files:
    """Files by path; each folder is listed once, so keep it no longer than one reading of a list."""

    def __init__(self) -> None:
        self._listings: dict[Path, Named[None] | None] = {}

    def find(self, path: Path) -> Path:
        """The path itself if it is there, else one whose parts are equal in NFC, else itself."""
        return self._walk(path, Named.name_of) or path

    def similar(self, path: Path) -> Path | None:
        """What is there under this path, or one that differs from it in case or form only."""
        return self._walk(path, Named.similar)

    def _walk(self, path: Path, choose: Callable[[Named[None], str], str | None]) -> Path | None:
        if path == path.parent:
            return None
        listed = self._listing(path.parent) is not None
        folder = path.parent if listed else self._walk(path.parent, choose)
        if folder is None or (names := self._listing(folder)) is None:
            return None
        name = choose(names, path.name)
        return folder / name if name else None

    def _listing(self, folder: Path) -> Named[None] | None:
        if folder not in self._listings:
            try:
                self._listings[folder] = Named({path.name: None for path in folder.iterdir()})
            except (OSError, ValueError):
                self._listings[folder] = None
        return self._listings[folder]


def find_path(path: Path) -> Path:
    """The file a path means: itself if it is there, else one whose name is equal in NFC, else itself."""
    return path if os.path.lexists(path) else Files().find(path)


def form_hint(similar: object | None) -> str:
    """Words for a message that says a name is not there; empty if no other differs in form only."""
    if similar is None:
        return ""
    return f"; there is {similar}, whose name differs only in case or in Unicode's form"


def similar_path(path: Path) -> Path | None:
    """What is there under nearly the name of a path that is not."""
    return Files().similar(path)
