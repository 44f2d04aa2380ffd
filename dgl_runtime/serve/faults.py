"""Exception handlers: an error below the addresses as a response, such as a machine that is full."""

import errno
import logging

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from dgl_runtime.errors import ConditionError, DglError, EngineError, GalleryAwayError, GalleryError

_LOG = logging.getLogger(__name__)
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def answer_faults(app: FastAPI) -> None:
    """Let them be answered."""
    app.exception_handler(RequestValidationError)(_say_what_is_wrong)
    app.exception_handler(OSError)(_say_what_is_used_up)
    app.exception_handler(GalleryAwayError)(_say_what_is_away)
    app.exception_handler(GalleryError)(_say_that_none_is_found)
    app.exception_handler(EngineError)(_say_that_nothing_runs)


def answer_of(error: DglError) -> Exception:
    """Of a search: 422, where the request is at fault; else the error, which is answered here."""
    is_ours = isinstance(error, EngineError | GalleryError) and not isinstance(
        error, ConditionError
    )
    return error if is_ours else HTTPException(422, str(error))


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's own answer repeats the input, of which JSON may not hold everything (NaN, half a letter)."""
    assert isinstance(error, RequestValidationError)
    told = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()]
    return JSONResponse({"detail": told}, 422)


async def _say_what_is_used_up(_: Request, error: Exception) -> JSONResponse:
    """No files, memory or disk left: that passes, and is no fault of the request's."""
    if not isinstance(error, OSError) or error.errno not in _USED_UP:
        raise error
    told = f"the machine has no room left: {error.strerror}"
    return JSONResponse({"detail": told}, 503, {"Retry-After": "1"})


async def _say_what_is_away(_: Request, error: Exception) -> JSONResponse:
    """The server of a gallery does not answer: it may be back soon. Where it is, is nobody's business."""
    _LOG.warning("%s", error)
    told = "the gallery's server cannot be reached now; try again soon"
    return JSONResponse({"detail": told}, 503, {"Retry-After": "2"})


async def _say_that_none_is_found(_: Request, error: Exception) -> JSONResponse:
    """A gallery that is damaged, or whose server refuses: for whoever runs the service."""
    _LOG.warning("%s", error)
    told = "the gallery cannot be read at the moment; the log of the service says why"
    return JSONResponse({"detail": told}, 503, {"Retry-After": "10"})


async def _say_that_nothing_runs(_: Request, error: Exception) -> JSONResponse:
    """As when a model server is away: the client can try again, and need not know that server's address."""
    _LOG.warning("%s", error)
    told = "the model does not run at the moment; the log of the service says why"
    return JSONResponse({"detail": told}, 503, {"Retry-After": "1"})
