"""Retriever: the public face, an Encoder and a Gallery. Add videos, find moments by text."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.decoding.decode_pool import DecodePool
from dgl_runtime.encoder.choice import Chosen
from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder, SelfCheck
from dgl_runtime.engines.candidates import AUTO
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.address import (
    Place,
    is_gallery_at,
    open_gallery,
    open_or_create,
    read_place,
)
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.gallery.shared import Shared
from dgl_runtime.indexing.index import BATCH, IndexReport, default_jobs, index_videos
from dgl_runtime.indexing.sought import look_for_videos
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.names import find_path
from dgl_runtime.search.example import read_example
from dgl_runtime.search.find import Hubness, Refinement, bank_hubness, find_moments
from dgl_runtime.search.moments import Hit

if TYPE_CHECKING:
    from dgl_runtime.encoder.encoder import Picture

Float32 = NDArray[np.float32]


class Retriever:
    """Text-to-video search with one bundle and, if given, one gallery. Threads may share it.

    Example:
        with Retriever("bundle", "gallery") as retriever:
            retriever.add_videos(["holiday"], window_s=10, stride_s=5)
            for hit in retriever.search("a dog jumps into the lake"):
                print(hit.video, hit.start_s, hit.end_s, hit.similarity)
    """

    def __init__(
        self,
        bundle: str | Path,
        gallery: str | Place | None = None,
        *,
        device: str = "cpu",
        engine: str = AUTO,
        threads: int = 0,
    ) -> None:
        """Open a bundle; its graphs and the gallery are opened when they are first needed.

        Args:
            bundle: The folder that dgl-export wrote.
            gallery: The folder of the gallery, or ``postgresql://USER@HOST/DATABASE?gallery=NAME``; made by
                the first ``add_videos``.
            device: As of ``Encoder``.
            engine: As of ``Encoder``.
            threads: As of ``Encoder``.

        Raises:
            BundleError: No bundle there, or it does not fit this version.
            EngineError: Device or engine do not exist.
            GalleryError: The address of the gallery is none.
        """
        self.encoder = Encoder(bundle, device=device, engine=engine, threads=threads)
        self.gallery_place = None if gallery is None else read_place(gallery)
        self._gallery = Shared(self._open_gallery)

    # ---- the encoder, see there -----------------------------------------------------------------

    @property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return self.encoder.bundle

    @property
    def num_frames(self) -> int:
        """F, the frames a clip is sampled at."""
        return self.encoder.num_frames

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.encoder.frame_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return self.encoder.tokenizer

    @property
    def text_engine(self) -> Engine:
        """The loaded text encoder."""
        return self.encoder.text_engine

    @property
    def clip_engine(self) -> Engine:
        """The loaded clip encoder."""
        return self.encoder.clip_engine

    @property
    def engine(self) -> str:
        """Which engine runs each graph that has been needed so far, and why."""
        return self.encoder.engine

    def chosen(self, name: str) -> Chosen:
        """As ``Encoder.chosen``."""
        return self.encoder.chosen(name)

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """As ``Encoder.embed_texts``: unit-norm float32 [Q, E]."""
        return self.encoder.embed_texts(texts)

    def embed_tokens(self, tokens: NDArray[np.int32]) -> Float32:
        """As ``Encoder.embed_tokens``: int32 [Q, L] to unit-norm float32 [Q, E]."""
        return self.encoder.embed_tokens(tokens)

    def embed_queries(self, queries: Sequence[str]) -> Float32:
        """As ``Encoder.embed_queries``: unit-norm float32 [Q, E]."""
        return self.encoder.embed_queries(queries)

    def embed_clips(self, frames: object) -> ClipEmbeddings:
        """As ``Encoder.embed_clips``: uint8 [B, F, 3, S, S] to embeddings and frame weights."""
        return self.encoder.embed_clips(frames)

    def embed_pictures(self, pictures: "Picture | Sequence[Picture]") -> Float32:
        """As ``Encoder.embed_pictures``: unit-norm float32 [N, E]."""
        return self.encoder.embed_pictures(pictures)

    def tell_cut(self, query: str) -> str | None:
        """What of a query is read, in words, if it is longer than that; None: all of it."""
        return self.encoder.tell_cut(query)

    def check(self) -> SelfCheck:
        """As ``Encoder.check``: run the golden inputs and compare with the golden results."""
        return self.encoder.check()

    # ---- searching ------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        top_k: int = 10,
        *,
        where: str | None = None,
        grouping: str = "apart",
        bank_hubness: Hubness | None = None,
    ) -> list[Hit]:
        """Find the moments most similar to a text, best first.

        Args:
            query: What the moment shows.
            top_k: Most moments to return.
            where: A condition in SQL that clips must fulfil; see ``dgl_runtime/gallery/filters.py``.
            grouping: What is done with clips of one video, of ``dgl_runtime.search.moments.GROUPINGS``.
            bank_hubness: What :meth:`hubness` gave, to rank down clips that are near to every text.

        Raises:
            DglError: The query is empty.
            GalleryError: No gallery, it belongs to another bundle, or the condition does not work.

        Warns:
            UserWarning: The query is longer than the model reads.
        """
        refinement = Refinement(where, grouping, bank_hubness)
        if (cut := self.tell_cut(query)) is not None:
            warnings.warn(f"The query {cut}", stacklevel=2)
        return self.search_embeddings(self.embed_queries([query]), top_k, refinement)[0]

    def search_embeddings(
        self, queries: Float32, top_k: int = 10, refinement: Refinement | None = None
    ) -> list[list[Hit]]:
        """As :meth:`search`, for each of unit-norm float32 [Q, E] of texts or clips."""
        with self._gallery.look() as gallery:
            return find_moments(gallery, queries, top_k, refinement or Refinement())

    def embed_example(
        self, path: str | Path, at_s: float | None = None, window_s: float | None = None
    ) -> Float32:
        """Embed a picture, a video or a moment of it, to search for clips like it: float32 [1, E].

        It is decoded in a process of its own.

        Args:
            path: The file.
            at_s: The middle of the moment, seconds; None: all of it.
            window_s: How long the moment lasts, seconds; None: as long as the gallery's clips.

        Raises:
            MediaError: It cannot be read.
        """
        if at_s is not None and window_s is None:
            with self._gallery.look() as gallery:
                window_s = gallery.facts.typical_length_s
        return read_example(self.encoder, Path(path), Segmentation(window_s, around_s=at_s))

    def hubness(self, texts: Sequence[str]) -> Hubness:
        """How near each clip of the gallery is to a bank of texts: float32 [rows] of one in a folder.

        Give it to :meth:`search`: a clip that is near to every text then ranks lower (inverted softmax).
        The bank should hold a hundred texts or more of the kind that is searched.

        Raises:
            ValueError: No texts.
        """
        with self._gallery.look() as gallery:
            return bank_hubness(gallery, self.embed_texts(texts))

    # ---- the gallery ----------------------------------------------------------------------------

    @property
    def gallery(self) -> AnyGallery:
        """The gallery, in a folder as it was when it was opened; ``add_videos`` and ``close`` close it."""
        return self._gallery.open()

    def _open_gallery(self) -> AnyGallery:
        if self.gallery_place is None:
            raise GalleryError("no gallery was given. Open Retriever(bundle, gallery).")
        return open_gallery(self.gallery_place, bundle_id=self.bundle.id)

    def add_videos(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        window_s: float | None = None,
        stride_s: float | None = None,
        at_shots: bool = False,
        exclude: Sequence[str] = (),
        jobs: int = 0,
        batch: int = BATCH,
        prune: bool = False,
        ray: str | None = None,
        encoders: int = 0,
        show_progress: bool = False,
    ) -> IndexReport:
        """Index videos, or all videos below folders; those that the gallery holds are skipped.

        A renamed file keeps its clips, a changed one is indexed again. Other threads may search
        meanwhile; they find the new clips when it is done.

        Args:
            paths: Files and folders.
            window_s: Length of the windows a video is cut into; None takes it whole.
            stride_s: From one window's start to the next; None is the window's length.
            at_shots: Cut where one shot ends and the next begins, and longer shots into windows, if
                ``window_s`` is given. Needs the extra ``shots``, and decodes every frame.
            exclude: Patterns of files and folders to skip below the folders; see
                ``dgl_runtime.media.video_files.is_excluded``.
            jobs: Processes that decode; 0: one for each core but one, at most 4.
            batch: Clips that are encoded together; a GPU is quicker with 32 or more.
            prune: Treat files that are missing below the folders as deleted, and remove excluded ones.
            ray: A Ray cluster that reads and encodes, as of ``dgl_runtime.indexing.on_ray.Cluster``; ``jobs``
                then counts on all its machines. None: this machine.
            encoders: Encoders on the cluster; 0: one for each GPU, or for each machine.
            show_progress: Draw a progress bar on stderr.

        Returns:
            What was added, present and skipped, and which videos could not be read.

        Raises:
            ValueError: ``batch`` is below 1.
            MediaError: A path does not exist, or holds no video.
            GalleryError: No gallery was given, or it cannot be written.
            ClusterError: No such cluster, or its machines do not see all they must.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected 1 clip or more.")
        place = self.gallery_place
        if place is None:
            raise GalleryError("no gallery was given to add to. Open Retriever(bundle, gallery).")
        segmentation = Segmentation(window_s, stride_s, at_shots)
        segmentation.require_installed()
        paths = [paths] if isinstance(paths, str | Path) else paths
        sought = look_for_videos(
            [find_path(Path(path)) for path in paths],
            exclude,
            prune=prune and is_gallery_at(place),
        )
        with self._open_to_write(place) as gallery:
            try:
                if ray is not None:
                    from dgl_runtime.indexing.on_ray import Cluster, index_on_ray

                    return index_on_ray(
                        self.encoder,
                        gallery,
                        sought,
                        segmentation,
                        Cluster(ray, jobs, encoders),
                        batch=batch,
                        show_progress=show_progress,
                    )
                frames = self.encoder.input_spec.frames
                with DecodePool(segmentation, frames, jobs=jobs or default_jobs()) as pool:
                    return index_videos(
                        self.encoder,
                        gallery,
                        sought,
                        segmentation,
                        pool,
                        batch=batch,
                        show_progress=show_progress,
                    )
            finally:
                self.close()  # before the writer, who takes up the log when nobody reads

    def _open_to_write(self, place: Place) -> AnyGallery:
        return open_or_create(
            place,
            bundle_id=self.bundle.id,
            bundle_path=self.bundle.folder.resolve(),
            embed_dim=self.encoder.embed_dim,
            num_frames=self.num_frames,
        )

    def close(self) -> None:
        """Close the gallery; a search that runs finishes first, and the next one opens it again."""
        self._gallery.close()

    def __enter__(self) -> "Retriever":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
