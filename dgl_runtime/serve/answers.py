"""Requests and responses: the shapes of the JSON, checked by pydantic, shown in /openapi.json."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

MOST_HITS = 1000
Grouping = Literal["apart", "merge", "video", "none"]


# What str.strip and ECMAScript each take for white space.
NOT_EMPTY = r"[^\s\x1c-\x1f\x85\ufeff]"


def _is_number(given: object) -> object:
    """JSON has numbers: neither texts nor true and false are taken for one."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("Input should be a number")
    return given


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)  # frozen: equal filters hash equal


class Filters(_Strict):
    """What is searched among, and how moments are shown."""

    top: Annotated[
        int,
        Field(ge=1, le=MOST_HITS, description="Moments at the most."),
        BeforeValidator(_is_number),
    ] = 24
    where: Annotated[
        str | None,
        Field(max_length=1000, description="A condition in SQL on the columns of the gallery."),
    ] = None
    group: Annotated[
        Grouping,
        Field(description="Moments apart, merged neighbours, one a video, or every clip."),
    ] = "apart"
    hubs: Annotated[
        StrictBool, Field(description="Rank down what fits every query, if there is a bank.")
    ] = True


class TextSearch(Filters):
    """A search by text."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1000,
            description="What the moment shows.",
            json_schema_extra={"pattern": NOT_EMPTY},  # checked where its own words are said
        ),
    ]


class Moment(BaseModel):
    """A moment that was found."""

    clip: Annotated[
        int, Field(description="Names the clip, for its thumbnail; until the gallery is compacted.")
    ]
    video: Annotated[int, Field(description="Names the video, to play it.")]
    title: Annotated[str, Field(description="The video's file name.")]
    start_s: float
    end_s: float
    duration_s: Annotated[float, Field(description="Of the whole video.")]
    similarity: Annotated[float, Field(description="Cosine, -1 to 1.")]
    frame_weights: Annotated[
        list[float], Field(description="How much each frame of the clip counted.")
    ]
    clip_start_s: Annotated[
        float, Field(description="Of the best clip, which the weights belong to.")
    ]
    clip_end_s: float
    metadata: dict[str, str | int | float | None]


class Moments(BaseModel):
    """Moments, best first."""

    moments: list[Moment]
    milliseconds: Annotated[float, Field(description="From the request's arrival to the answer.")]
    cut: Annotated[
        str | None, Field(description="What of the query was read, if it was longer than that.")
    ] = None


class GalleryFacts(BaseModel):
    """What a gallery holds."""

    name: str
    clips: int
    videos: int
    columns: Annotated[list[str], Field(description="What a condition may name.")]
    has_querybank: bool
    engine: str


class Session(_Strict):
    """A browser gives the token once, and keeps a cookie."""

    token: Annotated[str, Field(max_length=1000)]


class Readiness(BaseModel):
    """Whether searches are answered."""

    ready: bool
