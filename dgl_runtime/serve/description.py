"""What /openapi.json says: every status, body and header of every address, those of the guard included."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from dgl_runtime.serve.answers import Readiness
from dgl_runtime.serve.guard import COOKIE, OPEN_PATHS
from dgl_runtime.serve.media import VIDEO_TYPES

Answers = dict[int | str, dict[str, Any]]


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: str


class Fault(BaseModel):
    """What does not fit in a request."""

    loc: Annotated[list[str | int], Field(description="Where: body, query or path, then names.")]
    msg: str


class Faults(BaseModel):
    """What does not fit in a request, place by place, or in one sentence where it has no place."""

    detail: str | list[Fault]


_BYTES = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_SAID = {
    400: "This is not HTTP, a body that cannot be read, or a range that cannot be.",
    401: "The token is missing or wrong.",
    403: "A page of another origin asks.",
    404: "The gallery, clip or video does not exist.",
    408: "The body took too long to arrive.",
    410: "The video is not there any more, or was changed.",
    413: "The body is too large.",
    421: "The Host is not served here.",
    422: "The request does not fit, or its file or condition cannot be used.",
    429: "Too many wait for this already.",
    503: "Too many requests at once, no room left, or a server of the gallery or the model is away.",
    504: "There was no answer in time.",
}
_RETRY = {
    "Retry-After": {
        "description": "Seconds.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }
}
_RANGE = {"Content-Range": {"required": True, "schema": {"type": "string"}}}


def refusals(*statuses: int) -> Answers:
    """The description of refusals, in our own words and shapes."""
    told: Answers = {}
    for status in statuses:
        told[status] = {"description": _SAID[status], "model": Faults if status == 422 else Refusal}
        if status in (429, 503):
            told[status]["headers"] = _RETRY
        if status == 400:  # of uvicorn and Starlette
            told[status]["content"] = _TEXT
    return told


def content(description: str, media_types: Iterable[str]) -> Answers:
    """The description of an answer that is a file, whole."""
    return {200: {"description": description, "content": dict.fromkeys(media_types, _BYTES)}}


def file(description: str, media_types: Iterable[str]) -> Answers:
    """The description of an answer that is a file, whole or the ranges of it that are asked for."""
    media_types = tuple(media_types)
    part = dict.fromkeys((*media_types, "multipart/byteranges"), _BYTES)
    return {
        **content(description, media_types),
        206: {
            "description": "The range that `Range: bytes=FIRST-LAST` asks for, or several.",
            "content": part,
        },
        416: {
            "description": "The range lies behind the end.",
            "headers": _RANGE,
            "content": _TEXT,
        },
    }


ANYWHERE = refusals(400, 413, 421, 503)
NOT_READY: Answers = {503: {"description": "Not yet, or not any more.", "model": Readiness}}
VIDEO = file("The video.", sorted({*VIDEO_TYPES.values(), "application/octet-stream"}))


def describe(app: FastAPI, has_token: bool) -> None:
    """Complete what FastAPI knows by what stands before it; once all routes are there."""
    told = app.openapi()
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    }
    refused = {"$ref": "#/components/schemas/Refusal"}
    for path, item in told["paths"].items():
        for operation in item.values():
            statuses = []
            if path.startswith("/api/"):
                statuses.append(403)
            if has_token and path not in OPEN_PATHS:
                statuses.append(401)
                operation["security"] = [{name: []} for name in schemes]
            for status in statuses:
                operation["responses"][str(status)] = {
                    "description": _SAID[status],
                    "content": {"application/json": {"schema": refused}},
                }
    for field in told["components"]["schemas"]["Body_like"]["properties"].values():
        if "anyOf" in field:  # with null, which a form does not have
            field.update(field.pop("anyOf")[0])
        if "contentMediaType" in field:  # what OpenAPI 3.1 says of a file, generators read from 3.0
            field["format"] = "binary"
    if has_token:
        told["components"]["securitySchemes"] = schemes
