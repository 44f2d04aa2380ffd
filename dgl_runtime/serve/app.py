"""The application: what each address answers."""

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi import Path as PathOf
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray

from dgl_runtime.decoding.decode_process import Limits
from dgl_runtime.errors import DglError, GalleryAwayError, MediaError
from dgl_runtime.gallery.clips import Clip, FileState, Found
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.windows import Span, frame_times
from dgl_runtime.search.example import read_example
from dgl_runtime.serve.answers import (
    MOST_HITS,
    NOT_EMPTY,
    Filters,
    GalleryFacts,
    Grouping,
    Moment,
    Moments,
    Readiness,
    Session,
    TextSearch,
)
from dgl_runtime.serve.batching import Batcher, BatchSettings, QueueFullError
from dgl_runtime.serve.description import (
    ANYWHERE,
    NOT_READY,
    VIDEO,
    content,
    describe,
    file,
    refusals,
)
from dgl_runtime.serve.drain import Drain
from dgl_runtime.serve.faults import answer_faults, answer_of
from dgl_runtime.serve.galleries import REFRESH_S, ServedGallery, Snapshot
from dgl_runtime.serve.guard import COOKIE, Guard, GuardSettings, same, session_of
from dgl_runtime.serve.lane import Lane
from dgl_runtime.serve.media import MediaMaker, video_type
from dgl_runtime.serve.metrics import CountedApp, Metrics
from dgl_runtime.serve.searching import Wanted, answer_all

_PAGE = Path(__file__).parent / "page"
MOST_PICTURES, MOST_PREVIEWS = 64, 8  # that wait or are made
_UPLOAD_LIMITS = Limits(most_bytes=2 * 2**30, silent_s=20.0)
# Numbers of clips and videos may come to mean others, when a gallery is compacted.
_PRIVATE = {"cache-control": "private, no-cache"}
Side = Annotated[int, Query(ge=32, le=1280, description="Pixels of the longer side.")]
Number = Annotated[int, PathOf(ge=0, lt=2**63)]
Time = Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds from the start.")]


@dataclass(frozen=True)
class ServeSettings:
    """How galleries are served.

    Attributes:
        guard: What is let in.
        batching: How searches wait for each other.
        answer_s: How long a search may take, its waiting included.
        upload_s: How long an upload may take to be decoded, its waiting included.
        media_jobs: Thumbnails and previews made at the same time.
        drain: Begins when the service is about to stop.
    """

    guard: GuardSettings
    batching: BatchSettings = field(default_factory=BatchSettings)
    answer_s: float = 10.0
    upload_s: float = 30.0
    media_jobs: int = 2
    drain: Drain = field(default_factory=Drain)


def create_app(galleries: Sequence[ServedGallery], settings: ServeSettings) -> Guard:
    """Build the application around opened galleries."""
    service = Service(galleries, settings)
    app = FastAPI(
        title="dgl-retrieval",
        summary="Find moments in videos by text, picture or clip.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=service.lifespan,
        responses=ANYWHERE,
        generate_unique_id_function=lambda route: route.name,
    )
    service.add_routes(app)
    answer_faults(app)
    describe(app, settings.guard.token is not None)
    for route in app.routes:  # FastAPI's own answer no HEAD; described it need not be
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
    return Guard(CountedApp(app, service.metrics), settings.guard)


class Service:
    """Galleries, the queue in front of them, and what is counted."""

    def __init__(self, galleries: Sequence[ServedGallery], settings: ServeSettings) -> None:
        self._galleries = {gallery.name: gallery for gallery in galleries}
        self._settings = settings
        self.metrics = Metrics()
        self._batcher: Batcher[Wanted, list[Moment]] = Batcher(self._answer, settings.batching)
        self._media = MediaMaker(settings.media_jobs)
        # Threads of their own: what waits for a decoder must not keep anything else waiting.
        self._pictures = Lane(settings.media_jobs, MOST_PICTURES, "pictures")
        self._previews = Lane(1, MOST_PREVIEWS, "previews")
        self._uploads = Lane(settings.media_jobs, settings.guard.uploads, "uploads")
        self._is_ready = False
        self._away = set[str]()  # galleries whose servers do not answer

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Open everything, follow the galleries while it runs, and answer what waits before the end."""
        await asyncio.to_thread(self._open)
        self._batcher.start()
        following = asyncio.create_task(self._follow())
        self._is_ready = True
        yield
        self._is_ready = False
        following.cancel()
        await self._batcher.stop()
        await asyncio.to_thread(self._media.close)
        for gallery in self._galleries.values():
            gallery.close()

    def _open(self) -> None:
        for gallery in self._galleries.values():
            gallery.refresh()
            gallery.encoder.embed_texts(["warm up"])
            self._count_clips(gallery)

    async def _follow(self) -> None:
        """Take new snapshots of galleries that somebody writes."""
        while True:
            await asyncio.sleep(REFRESH_S)
            for gallery in self._galleries.values():
                await asyncio.to_thread(self._refresh, gallery)

    def _refresh(self, gallery: ServedGallery) -> None:
        try:
            gallery.refresh()
            self._count_clips(gallery)
            self._away.discard(gallery.name)
        except GalleryAwayError:
            self._away.add(gallery.name)
        except DglError:
            pass  # the snapshot that is there goes on

    def _count_clips(self, gallery: ServedGallery) -> None:
        with gallery.look() as snapshot:
            self.metrics.clips.labels(gallery.name).set(len(snapshot.gallery))

    # ---- searching ------------------------------------------------------------------------------

    def _answer(self, wanted: Sequence[Wanted]) -> list[list[Moment] | Exception]:
        self.metrics.batch.observe(len(wanted))
        return answer_all(wanted)

    async def _search(self, wanted: Wanted, started: float) -> Response:
        try:
            async with asyncio.timeout(self._settings.answer_s):
                moments = await self._batcher.submit(wanted)
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self._settings.answer_s:g} s") from error
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_s)}) from error
        except DglError as error:
            raise answer_of(error) from None
        cut = None
        if isinstance(wanted.query, str):
            cut = wanted.gallery.encoder.tell_cut(wanted.query)
        milliseconds = 1000 * (time.perf_counter() - started)
        found = Moments(moments=moments, milliseconds=milliseconds, cut=cut)
        # As it is: FastAPI would check and convert all of it once more.
        return Response(found.model_dump_json(), media_type="application/json")

    def _gallery(self, name: str) -> ServedGallery:
        if (gallery := self._galleries.get(name)) is None:
            raise HTTPException(
                404, f"no gallery {name!r}; there are: {', '.join(self._galleries)}"
            )
        return gallery

    # ---- routes ---------------------------------------------------------------------------------

    def add_routes(self, app: FastAPI) -> None:
        """Say what each address answers."""
        app.get("/health")(self.health)
        app.get("/ready", response_model=Readiness, responses=NOT_READY)(self.ready)
        figures = content("The figures.", ["text/plain"])
        app.get("/metrics", response_class=Response, responses=figures)(self.tell_metrics)
        app.post("/api/session", status_code=204, responses=refusals(401, 408, 422))(
            self.begin_session
        )
        app.get("/api/galleries")(self.list_galleries)
        gallery = "/api/galleries/{name}"
        searched = refusals(404, 408, 422, 429, 504)
        app.post(f"{gallery}/search", response_model=Moments, responses=searched)(self.search)
        app.post(f"{gallery}/like", response_model=Moments, responses=searched)(self.like)
        shown = refusals(404, 410, 422)
        app.get(
            f"{gallery}/clips/{{clip}}/thumbnail",
            response_class=Response,
            responses={**content("The frame.", ["image/jpeg"]), **shown, **refusals(429)},
        )(self.thumbnail)
        app.get(
            f"{gallery}/clips/{{clip}}/preview",
            response_class=Response,
            responses={**file("The moment.", ["video/mp4"]), **shown, **refusals(429)},
        )(self.preview)
        app.get(
            f"{gallery}/videos/{{video}}", response_class=Response, responses={**VIDEO, **shown}
        )(self.video)
        page = file("The page.", ["text/html"])
        app.get("/", response_class=Response, responses=page)(self.page)
        app.mount("/assets", StaticFiles(directory=_PAGE))

    async def page(self) -> FileResponse:
        """The page to search and watch."""
        return FileResponse(_PAGE / "index.html", headers={"cache-control": "no-cache"})

    async def health(self) -> dict[str, str]:
        """That the service runs."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """Whether searches are answered."""
        is_ready = self._is_ready and not self._away and not self._settings.drain.has_begun
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def tell_metrics(self) -> Response:
        """Figures for Prometheus."""
        self.metrics.waiting.set(self._batcher.depth)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def begin_session(self, session: Session, request: Request, response: Response) -> None:
        """Take the token once, and let the browser in by a cookie that scripts cannot read."""
        token = self._settings.guard.token
        if token is None or not same(session.token, token):
            raise HTTPException(401, "this is not the token of this service")
        response.set_cookie(
            COOKIE,
            session_of(token),
            httponly=True,
            samesite="strict",
            # A proxy need not say what it was asked over; the browser says what its page came over.
            secure="https" in (request.url.scheme, request.headers.get("origin", "")[:5]),
        )

    async def list_galleries(self) -> list[GalleryFacts]:
        """What is served."""
        return [await asyncio.to_thread(_facts, one) for one in self._galleries.values()]

    async def search(self, name: str, search: TextSearch) -> Response:
        """Find moments by text."""
        started = time.perf_counter()
        if not re.search(NOT_EMPTY, search.query):
            raise HTTPException(
                422, "the query is empty. Say in a few words what the moment shows."
            )
        return await self._search(Wanted(self._gallery(name), search.query, search), started)

    async def like(
        self,
        name: str,
        file: Annotated[UploadFile, File(description="A picture or a video.")],
        at_s: Annotated[
            float | None, Form(ge=0, allow_inf_nan=False, description="The middle of its moment.")
        ] = None,
        top: Annotated[int, Form(ge=1, le=MOST_HITS)] = 24,
        where: Annotated[str | None, Form(max_length=1000)] = None,
        group: Annotated[Grouping, Form()] = "apart",
    ) -> Response:
        """Find moments that look like a picture or a clip; it is not kept."""
        started = time.perf_counter()
        gallery = self._gallery(name)
        try:
            async with asyncio.timeout(self._settings.upload_s):
                embedding = await self._uploads.run(_embed_upload, gallery, file, at_s)
        except TimeoutError as error:
            raise HTTPException(504, "the upload takes too long to decode") from error
        filters = Filters(top=top, where=where, group=group, hubs=False)
        return await self._search(Wanted(gallery, embedding, filters), started)

    async def thumbnail(self, name: str, clip: Number, side: Side = 480) -> Response:
        """The frame of a clip that counted most, as a JPEG."""
        made = await self._pictures.run(self._thumbnail, self._gallery(name), clip, side)
        return Response(made, media_type="image/jpeg", headers=_PRIVATE)

    def _thumbnail(self, gallery: ServedGallery, clip: int, side: int) -> bytes:
        with gallery.look() as snapshot:
            found = _found(snapshot, clip)
            path = _listed_file(snapshot, found.video_id)
            second = _heaviest_second(found.clip, found.frame_weights)
        try:
            return self._media.picture(path, found.clip.content_sha256, second, side)
        except MediaError as error:
            raise HTTPException(422, str(error)) from error

    async def preview(self, name: str, clip: Number, start_s: Time, end_s: Time) -> FileResponse:
        """A moment of a clip's video as MP4, a minute at the most, for what a browser cannot play."""
        made = await self._previews.run(self._preview, self._gallery(name), clip, start_s, end_s)
        return FileResponse(made, media_type="video/mp4", headers=_PRIVATE)

    def _preview(self, gallery: ServedGallery, clip: int, start_s: float, end_s: float) -> Path:
        with gallery.look() as snapshot:
            found = _found(snapshot, clip)
            path = _listed_file(snapshot, found.video_id)
        if not start_s < end_s:
            raise HTTPException(422, f"start_s is {start_s}, expected less than end_s {end_s}")
        try:
            return self._media.preview(path, found.clip.content_sha256, start_s, end_s)
        except MediaError as error:
            raise HTTPException(422, str(error)) from error

    async def video(self, name: str, video: Number) -> FileResponse:
        """A video as it is, or the range of it that is asked for."""
        path = await asyncio.to_thread(self._video, self._gallery(name), video)
        return FileResponse(path, media_type=video_type(path), headers=_PRIVATE)

    @staticmethod
    def _video(gallery: ServedGallery, video: int) -> Path:
        with gallery.look() as snapshot:
            if not snapshot.gallery.files(video):
                raise HTTPException(404, f"no video {video} in gallery {gallery.name}")
            return _listed_file(snapshot, video)


def _facts(served: ServedGallery) -> GalleryFacts:
    with served.look() as snapshot:
        facts = snapshot.gallery.facts
        return GalleryFacts(
            name=served.name,
            clips=facts.num_clips,
            videos=facts.num_videos,
            columns=facts.columns,
            has_querybank=snapshot.bank_hubness is not None,
            engine=served.encoder.engine,
        )


def _found(snapshot: Snapshot, row: int) -> Found:
    try:
        return snapshot.gallery.look_up([row])[row]
    except LookupError as error:
        raise HTTPException(404, f"no clip {row}") from error


def _listed_file(snapshot: Snapshot, video_id: int) -> Path:
    """A file of a video of the gallery, if it is still the one that was indexed.

    No path ever comes from a request; one that was replaced meanwhile is not shown.
    """
    for state in snapshot.gallery.files(video_id):
        path = Path(state.path)
        with suppress(OSError):
            if path.resolve() == path and FileState.of(path) == state:  # no link on the way
                return path
    raise HTTPException(410, "the video is not there any more, or was changed; index it again")


def _heaviest_second(clip: Clip, weights: NDArray[np.float32]) -> float:
    times = frame_times(Span(clip.start_s, clip.end_s), len(weights))
    return float(times[int(weights.argmax())])


def _embed_upload(
    gallery: ServedGallery, file: UploadFile, at_s: float | None
) -> NDArray[np.float32]:
    with tempfile.NamedTemporaryFile(prefix="dgl-upload-") as copy:
        shutil.copyfileobj(file.file, copy)
        copy.flush()
        with gallery.look() as snapshot:
            length_s = snapshot.gallery.facts.typical_length_s
        segmentation = Segmentation(None if at_s is None else length_s, around_s=at_s)
        try:
            embedded = read_example(gallery.encoder, Path(copy.name), segmentation, _UPLOAD_LIMITS)
        except MediaError as error:
            text = str(error).replace(copy.name, "the upload")
            raise HTTPException(422, text) from error
    row: NDArray[np.float32] = embedded[0]
    return row
