"""What every command shares: errors on one line of stderr, missing extras named, Ctrl-C without a traceback."""

import codecs
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from threading import current_thread, main_thread
from typing import Any

import click

from dgl_runtime.errors import DglError

# Top-level module that is missing -> extra of dgl-retrieval that brings it.
_EXTRAS = {
    "onnxruntime": "cpu (or gpu)",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt_rtx": "trt-rtx",
    "cuda": "trt",
    "pycuda": "pycuda",
    "usearch": "large",
    "scenedetect": "shots",
    "cv2": "shots",
    "pillow_heif": "heic",
    "watchfiles": "watch",
    "psycopg": "postgres",
    "pgvector": "postgres",
    "sqlglot": "postgres",
    "ray": "ray",
    "fastapi": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "torch": "train",
    "accelerate": "train",
    "tensorboard": "train",
    "open_clip": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
}
INTERRUPTED = 130
_AS_IT_IS = "dgl-as-it-is"


class Command(click.Command):
    """A click command that turns our errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        """Run the command; only usage errors (exit code 2) are left to click."""
        _print_any_name()
        try:
            with _sigterm_unwinds():
                return super().invoke(ctx)
        except DglError as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            fail(
                f"{ctx.info_name} needs the package {error.name!r}, which is not installed. "
                f"Install it with: pip install 'dgl-retrieval[{extra.split()[0]}]'"
            )
        except BrokenPipeError:  # the reader of our output has gone, as in ``| head``
            raise
        except OSError as error:
            fail(
                f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}. "
                "Check the path, its permissions and the free space."
            )
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)


def _print_any_name() -> None:
    """Print the bytes of a file name that is no text, and ? for letters that the terminal does not know."""

    def as_it_is(error: UnicodeError) -> tuple[str | bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        letters = error.object[error.start : error.end]
        return b"".join(_byte_of(letter) for letter in letters), error.end

    codecs.register_error(_AS_IT_IS, as_it_is)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_AS_IT_IS)


def _byte_of(letter: str) -> bytes:
    number = ord(letter) - 0xDC00  # Python's way to hold a byte that is no text
    return bytes([number]) if 0x80 <= number <= 0xFF else b"?"


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends the command as an exception does, so that unfinished folders are removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str) -> None:
    """Print one line on stderr and exit with code 1."""
    report_error(message)
    sys.exit(1)


def report_error(message: str) -> None:
    """Print one line on stderr and go on."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)


def report_note(message: str) -> None:
    """Print one line on stderr that is worth knowing and no error, once a command."""
    context = click.get_current_context(silent=True)
    told = context.meta.setdefault(__name__, set()) if context else set()
    if message not in told:
        told.add(message)
        click.echo(f"Note: {' '.join(message.split())}", err=True)
