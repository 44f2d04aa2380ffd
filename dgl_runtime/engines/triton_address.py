"""Where a Triton server is, as --engine says it: triton:HOST:PORT, or tritons:HOST:PORT over TLS."""

import re
from dataclasses import dataclass

from dgl_runtime.errors import EngineError

FORM = "triton:HOST:PORT"
_SCHEMES = {"triton": False, "tritons": True}
_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class TritonAddress:
    """A server's gRPC port."""

    target: str  # HOST:PORT
    is_encrypted: bool

    @staticmethod
    def is_one(engine: str) -> bool:
        """Whether an engine's name is meant as such an address."""
        return engine.partition(":")[0] in _SCHEMES

    @classmethod
    def of(cls, engine: str) -> "TritonAddress | None":
        """The address that an engine's name says; None for the name of an engine of this machine.

        Raises:
            EngineError: It names a server, but neither host nor port.
        """
        if not cls.is_one(engine):
            return None
        scheme, _, target = engine.partition(":")
        found = _HOST_AND_PORT.fullmatch(target)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise EngineError(
                f"engine is {engine!r}; a Triton server is named {FORM}, or tritons:HOST:PORT over TLS, "
                "by its gRPC port. Write one such as triton:localhost:8001."
            )
        return cls(target, _SCHEMES[scheme])
