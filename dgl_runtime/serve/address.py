"""Where a service listens, how that is written in a browser, and the names it is asked by."""

import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from dgl_runtime.errors import ConfigError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """An address of this machine.

    Attributes:
        host: As it was asked for, an IPv6 address without its brackets.
        family: IPv4 or IPv6.
        place: What the socket is bound to.
    """

    host: str
    family: socket.AddressFamily
    place: tuple[Any, ...]

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """Look an address or a name up; of the addresses of a name IPv4 counts first.

        Raises:
            ConfigError: It is none.
        """
        inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            if not inner or (inner != host and ":" not in inner):
                raise ValueError("expected an address such as 127.0.0.1 or ::1, or a name")
            found = socket.getaddrinfo(inner, port, type=socket.SOCK_STREAM)
        except (
            OSError,
            ValueError,
        ) as error:  # UnicodeError of a name that cannot be one is a ValueError
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"--host {host!r} is not an address or a name that can be looked up: {reason}. "
                "Name an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::1."
            ) from error
        family, _, _, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
        return cls(inner, family, place)

    @property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(str(self.place[0]))

    @property
    def is_local(self) -> bool:
        """Whether it is reached from this machine alone."""
        return self._ip.is_loopback

    @property
    def names(self) -> tuple[str, ...]:
        """What the Host header of those who ask there says."""
        return self.host, str(self.place[0])

    def url(self, port: int) -> str:
        """What a browser on this machine opens; of all addresses together the machine's own."""
        host = self.host
        if self._ip.is_unspecified:
            host = "::1" if self.family == socket.AF_INET6 else "127.0.0.1"
        return (
            f"http://[{quote(host, safe=':')}]:{port}" if ":" in host else f"http://{host}:{port}"
        )


def listen(address: Address) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        ConfigError: It is taken, or the address is not of this machine.
    """
    with ExitStack() as undo:
        try:
            # asyncio sends small answers at once (TCP_NODELAY) on sockets that say they speak TCP only.
            listener = socket.socket(address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            undo.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address.place)
            listener.listen(1024)
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {address.host} port {address.place[1]}: {error.strerror or error}. "
                "Name another with --port, or an address of this machine with --host."
            ) from error
        undo.pop_all()
    return listener


def host_name(host: str) -> str:
    """The one way to write what a Host header or --allow-host names: no port, no brackets, no capitals."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or (":" in name and not name.endswith("]")):
        name = host
    if name.startswith("[") and name.endswith("]") and ":" in name:
        name = name[1:-1]
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower().rstrip(".")
