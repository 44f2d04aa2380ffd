"""A handle that threads share, such as an open gallery: replaced at once, closed when its last user is done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """A thing to let go of."""

    def close(self) -> None:
        """Let it go."""


Thing = TypeVar("Thing", bound=Closable)


@dataclass(eq=False)
class _Held(Generic[Thing]):
    thing: Thing
    users: int = 0
    is_old: bool = False


class Shared(Generic[Thing]):
    """The newest of a thing; an older one is closed when the last of its users has finished."""

    def __init__(self, make: Callable[[], Thing]) -> None:
        """Prepare; ``make`` opens one when it is first needed, for one thread at a time."""
        self._make = make
        self._lock = threading.Lock()
        self._held: _Held[Thing] | None = None

    @property
    def newest(self) -> Thing | None:
        """The one that :meth:`look` would give; None: it would make one."""
        held = self._held
        return None if held is None else held.thing

    def open(self) -> Thing:
        """The newest, made if there is none; good until it is replaced or let go of."""
        with self._lock:
            return self._open().thing

    def _open(self) -> _Held[Thing]:
        if self._held is None:
            self._held = _Held(self._make())
        return self._held

    @contextmanager
    def look(self) -> Iterator[Thing]:
        """The newest, made if there is none, open for as long as the context lasts."""
        with self._lock:
            held = self._open()
            held.users += 1
        try:
            yield held.thing
        finally:
            with self._lock:
                held.users -= 1
                _close_unused(held)

    def put(self, thing: Thing) -> None:
        """Replace the newest."""
        self._replace(_Held(thing))

    def close(self) -> None:
        """Let go of the newest; the next look makes one."""
        self._replace(None)

    def _replace(self, held: _Held[Thing] | None) -> None:
        with self._lock:
            old, self._held = self._held, held
            if old is not None:
                old.is_old = True
                _close_unused(old)


def _close_unused(held: _Held[Thing]) -> None:
    if held.is_old and not held.users:
        held.thing.close()
