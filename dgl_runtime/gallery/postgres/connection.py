"""Connections to the server of a gallery: lent to one thread at a time, replaced when they are lost.

A writer waits for a server that went away: each change is a transaction that may be done twice.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from dgl_runtime.command import report_note
from dgl_runtime.errors import GalleryAwayError, GalleryError, reason_of
from dgl_runtime.gallery.postgres.address import PostgresAddress
from dgl_runtime.gallery.postgres.schema import Connection, set_search_path

Answer = TypeVar("Answer")

PATIENCE_S = 60.0  # that a change waits for a server: it may recover from a crash
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_SETTINGS = {  # a dead line shows in seconds; an address may say otherwise
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "dgl-retrieval",
}
# Changes of others came between: done once more, it goes through.
_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure, errors.ForeignKeyViolation)
_MOST_CONFLICTS = 50
_GOING = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow)
_NO_ROOM = (errors.DiskFull, errors.OutOfMemory)
# Of a server that says no when it is asked to connect, these pass.
_PASSING = ("starting up", "shutting down", "recovery", "too many", "slots", "terminating")


class Connections:
    """Of one gallery. Threads may share them."""

    def __init__(self, address: PostgresAddress) -> None:
        """Connect to nothing yet, and wait for no server; ``patience_s`` says for how long they do."""
        self._address, self.patience_s = address, 0.0
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close those that nobody uses; the others when they are given back."""
        self._is_closed = True
        self.drop()

    def drop(self) -> None:
        """Close those that nobody uses; the next are new."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def read(self, work: Callable[[Connection], Answer]) -> Answer:
        """Do what changes nothing; once more where the line was lost since it was used last.

        Raises:
            GalleryError: They are closed, or the server refused.
            GalleryAwayError: The server cannot be reached, where they wait for it: for ``patience_s``.
        """
        with self._lock:
            is_used = bool(self._idle)
        return self._again(work, is_used=is_used)

    def change(self, work: Callable[[Connection], Answer]) -> Answer:
        """Do a transaction: all of it, or nothing; again after a conflict.

        Raises:
            GalleryError: They are closed, or the server refused.
            GalleryAwayError: The server could not be reached for ``patience_s``.
        """
        return self._again(lambda connection: _transaction(connection, work))

    def _again(self, work: Callable[[Connection], Answer], *, is_used: bool = False) -> Answer:
        """Do work, which may be done twice: again after a conflict, and when a server is back."""
        deadline, pause_s = time.monotonic() + self.patience_s, _SHORTEST_PAUSE_S
        conflicts = 0
        with self._faults():
            while True:
                try:
                    return self._once(work)
                except _CONFLICTS:
                    conflicts += 1
                    if conflicts > _MOST_CONFLICTS:
                        raise
                    continue
                except psycopg.OperationalError as error:
                    if not _is_lost(error) or not (is_used or time.monotonic() < deadline):
                        raise
                self.drop()
                if is_used:
                    is_used = False  # the line was old; a new one may do
                    continue
                if pause_s == _SHORTEST_PAUSE_S:
                    report_note(
                        f"gallery {self._address} cannot be reached; waiting up to {self.patience_s:g} s."
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _once(self, work: Callable[[Connection], Answer]) -> Answer:
        with self._lend() as connection:
            return work(connection)

    @contextmanager
    def _lend(self) -> Iterator[Connection]:
        if self._is_closed:
            raise GalleryError(f"gallery {self._address} is closed. Open it again.")
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        finally:
            is_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            with self._lock:
                is_kept = is_idle and not self._is_closed
                if is_kept:
                    self._idle.append(connection)
            if not is_kept:
                connection.close()

    def _connect(self) -> Connection:
        settings: dict[str, Any] = {**_SETTINGS, **conninfo_to_dict(self._address.conninfo)}
        connection = psycopg.connect(**settings, client_encoding="utf8", autocommit=True)
        try:
            if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
                raise GalleryError(
                    f"the database of gallery {self._address} has the encoding {encoding}, expected UTF8. "
                    "Make one with: createdb --encoding UTF8 --template template0 NAME"
                )
            if set_search_path(connection, self._address.gallery):
                register_vector(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """PostgreSQL's errors as ours; no password is in them."""
        try:
            yield
        except psycopg.Error as error:
            raise self._told(error) from None

    def _told(self, error: psycopg.Error) -> GalleryError:
        reason, named = reason_of(error), f"gallery {self._address}"
        with suppress(psycopg.Error):
            settings = conninfo_to_dict(self._address.conninfo)
            for secret in (settings.get("password"), settings.get("sslpassword")):
                reason = reason.replace(str(secret), "***") if secret else reason
        if isinstance(error, psycopg.OperationalError) and _is_lost(error):
            return GalleryAwayError(
                f"{named} cannot be reached: {reason}. Check that its server runs and that the address is "
                "right, then do the same again."
            )
        if isinstance(error, _NO_ROOM):
            return GalleryError(
                f"{named} could not take a change: {reason}. It is as before; make room on its server, then "
                "do the same again."
            )
        if isinstance(error, errors.InsufficientPrivilege):
            return GalleryError(
                f"{named} refuses: {reason}. Use a user who may do it, or have the database's owner grant it."
            )
        if isinstance(error, errors.UndefinedTable):
            return GalleryError(
                f"{named} is not there any more, or this user may not use its schema ({reason}). Grant "
                "USAGE on the schema, or index the videos into it again."
            )
        return GalleryError(
            f"{named}: PostgreSQL says: {reason}. Check the address, the user and the server's log."
        )


def _transaction(connection: Connection, work: Callable[[Connection], Answer]) -> Answer:
    with connection.transaction():
        return work(connection)


def _is_lost(error: psycopg.OperationalError) -> bool:
    """Whether the server was not there, or went: not that it refuses, or has no room."""
    if isinstance(error, (*_GOING, errors.TooManyConnections)):
        return True
    told = str(error)
    return error.sqlstate is None and (
        "FATAL" not in told or any(word in told for word in _PASSING)
    )
