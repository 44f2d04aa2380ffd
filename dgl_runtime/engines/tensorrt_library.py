"""TensorRT and TensorRT for RTX as Python modules: one family, imported and checked in one place."""

import importlib
import re
from collections import deque
from typing import Any

from dgl_runtime.engines.installed import KINDS, how_to_install
from dgl_runtime.errors import EngineError, reason_of

LIBRARIES = ("tensorrt", "trt-rtx")  # among the engines
PORTABLE = ("trt-rtx",)  # builds without a GPU, for all that it supports
OLDEST = (10, 12)  # of TensorRT: strongly typed networks with everything our graphs hold


def load_library(name: str) -> Any:  # noqa: ANN401
    """Import the module of an engine.

    Args:
        name: One of ``LIBRARIES``.

    Raises:
        EngineError: Not installed, installed without its libraries, or too old.
    """
    if name not in LIBRARIES:
        raise EngineError(f"library is {name!r}; it must be one of {', '.join(LIBRARIES)}.")
    module, remedy = KINDS[name].module, f"Install it with: {how_to_install(name, 'cuda')}"
    try:
        library = importlib.import_module(module)
    except (ImportError, OSError) as error:  # bindings without their libraries raise either
        raise EngineError(
            f"{name} needs the Python module {module}, which does not import: {reason_of(error)}. "
            f"{remedy}"
        ) from error
    if name == "tensorrt" and version_of(library) < OLDEST:
        raise EngineError(
            f"tensorrt is {library.__version__}; {'.'.join(map(str, OLDEST))} or newer is needed. "
            f"{remedy}"
        )
    return library


def version_of(library: Any) -> tuple[int, int]:  # noqa: ANN401
    """Major and minor version of a library."""
    major, minor = re.findall(r"\d+", library.__version__)[:2]
    return int(major), int(minor)


def make_logger(library: Any) -> Any:  # noqa: ANN401
    """A logger that keeps the last errors in ``messages``: the library itself only returns None."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=50)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            kinds = library.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self.messages.append(" ".join(message.split()))

    return Logger()


def said_by(logger: Any) -> str:  # noqa: ANN401
    """What a logger has kept since it was last asked, on one line."""
    text = " | ".join(dict.fromkeys(logger.messages))
    logger.messages.clear()
    return text[:600] or "it gave no reason"
