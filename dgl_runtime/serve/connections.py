"""Connections: as many as there are files for, and a new one sooner than one that waits for its client.

asyncio's own server accepts without a bound, and without files left it tries again without a pause.
"""

import asyncio
import logging
import resource
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dgl_runtime.errors import ConfigError
from dgl_runtime.serve.drain import Drain

MOST_CONNECTIONS = 2048
FEWEST_CONNECTIONS = 4
# Files that are opened after the start, whatever the connections do: the engine's and the event loop's,
# one of each decoder and five while it starts, uploads on the disk and their copies, a gallery opened anew.
FILES_IN_RESERVE = 5 + 2 * 5 + 10 + 8
_FILES_A_CONNECTION = 2  # itself, and the video that is sent
_PAUSE_S = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """What the limit of open files leaves for clients.

    Attributes:
        connections: At the same time.
        requests: At work at the same time; the rest is kept for those who ask whether the service lives.
    """

    connections: int = MOST_CONNECTIONS

    @property
    def requests(self) -> int:
        """See the class."""
        return self.connections - max(2, self.connections // 8)


def raise_file_limit() -> None:
    """Raise the limit of open files as far as it is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems name a hard limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_left() -> Room:
    """The room beside the files that are open now and those kept in reserve.

    Raises:
        ConfigError: It is too small.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = _files_open() + FILES_IN_RESERVE
    if limit == resource.RLIM_INFINITY:
        return Room()
    if limit < (least := taken + FEWEST_CONNECTIONS * _FILES_A_CONNECTION):
        raise ConfigError(
            f"the limit of open files is {limit}, at least {least} are needed. Raise it: ulimit -n 1024"
        )
    return Room(min(MOST_CONNECTIONS, (limit - taken) // _FILES_A_CONNECTION))


def _files_open() -> int:
    return len(list(Path("/dev/fd").iterdir()))


class Connection(H11Protocol):
    """A client's connection; knows since when it is the client that is waited for."""

    _asked_s = 0.0  # since when a whole request is waited for
    _stuck_s: float | None = None  # since when the client takes nothing of its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._asked_s = self.loop.time()
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._asked_s = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._stuck_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck_s = None
        super().resume_writing()

    @property
    def waiting_s(self) -> float | None:
        """The loop's time since which the client is waited for; None while the service is at work."""
        if self._stuck_s is not None:
            return self._stuck_s
        is_at_work = self.cycle and not self.cycle.response_complete and not self.cycle.more_body
        return None if is_at_work else self._asked_s


class Server(uvicorn.Server):
    """uvicorn behind a door of its own; ``config`` must make ``Connection`` objects."""

    def __init__(self, config: uvicorn.Config, room: Room, drain: Drain) -> None:
        super().__init__(config)
        self._room, self._drain = room, drain
        self._doors: list[asyncio.Task[None]] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; after SIGTERM only when proxies have had time to see that the service is not ready."""
        if sig != signal.SIGTERM or not self._drain.begins():
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to stop."""
        if self._drain.is_over():
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.setblocking(False)
            self._doors.append(asyncio.create_task(self._accept_all(listener)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and answer what was accepted."""
        for door in self._doors:
            door.cancel()
        await asyncio.gather(*self._doors, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(self._connection, accepted)
            except (
                Exception
            ) as error:  # no file left, say, or the client has gone: the next may fare better
                _log.warning("cannot accept a connection: %s", error)
                await self._make_way()
            while len(self.server_state.connections) > self._room.connections:
                await self._make_way()

    def _connection(self) -> asyncio.Protocol:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def _make_way(self) -> None:
        """Close the connection whose client has been waited for longest; if there is none, wait a little."""
        waiting = [
            (one.waiting_s, number, one)
            for number, one in enumerate(self.server_state.connections)
            if isinstance(one, Connection) and one.waiting_s is not None
        ]
        if waiting:
            _log.warning(
                "%d connections are open, no more can be: of those that wait for their client the oldest "
                "is closed",
                len(self.server_state.connections),
            )
            min(waiting)[2].transport.abort()
        await asyncio.sleep(0 if waiting else _PAUSE_S)
