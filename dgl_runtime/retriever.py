"""Retriever: the public face. Open a bundle, add videos to a gallery, find moments by text."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.folder import TOKENIZER, Bundle
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.encoder.choice import Chosen, choose
from dgl_runtime.encoder.self_check import GRAPHS, check_graph
from dgl_runtime.engines.candidates import AUTO, check_names
from dgl_runtime.engines.device_arrays import lies_on_device
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import DglError, EngineError, GalleryError
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.indexing.index import IndexReport, index_videos
from dgl_runtime.media.cutting import Cutting
from dgl_runtime.names import find_path
from dgl_runtime.search.example import read_example
from dgl_runtime.search.find import Refinement, bank_hubness, find_moments
from dgl_runtime.search.moments import Hit

Float32 = NDArray[np.float32]


# Captions run together, with others of about their length: a batch is as long as its longest.
CAPTION_BATCH = 32


@dataclass(frozen=True)
class ClipEmbeddings:
    """What the clip encoder says of a batch of clips."""

    embeddings: Float32  # [B, E], unit norm
    frame_weights: Float32  # [B, F], how much each frame counted; rows sum to 1


@dataclass(frozen=True)
class SelfCheck:
    """How far this machine's results are from the exporting machine's, on the golden inputs."""

    captions_max_abs: float
    clips_max_abs: float
    captions_min_cosine: float
    clips_min_cosine: float


class Retriever:
    """Text-to-video search with one bundle and, if given, one gallery.

    Example:
        with Retriever("bundle", "gallery") as retriever:
            retriever.add_videos(["holiday"], window_s=10, stride_s=5)
            for hit in retriever.search("a dog jumps into the lake"):
                print(hit.video, hit.start_s, hit.end_s, hit.similarity)
    """

    def __init__(
        self,
        bundle: str | Path,
        gallery: str | Path | None = None,
        *,
        device: str = "cpu",
        engine: str = AUTO,
        threads: int = 0,
    ) -> None:
        """Open a bundle; its graphs are loaded when they are first needed. Threads may share it.

        Args:
            bundle: The folder that dgl-export wrote.
            gallery: The folder of the gallery; made by the first ``add_videos``.
            device: ``cpu``; ``cuda``, without a fallback; or ``auto``: cuda if an engine really
                works there, else cpu.
            engine: ``onnx``, ``openvino``, ``tensorrt`` or ``trt-rtx``, without a fallback; or
                ``auto``: for each graph the fastest that is installed and passes the self-check,
                measured once on this machine.
            threads: CPU threads for encoding; 0 lets the engine choose.

        Raises:
            BundleError: No bundle there, or it does not fit this version.
            EngineError: Device or engine do not exist.
        """
        check_names(device, engine)
        self.bundle = Bundle(bundle)
        self.gallery_folder = None if gallery is None else Path(gallery)
        self._device, self._asked_engine, self._threads = device, engine, threads
        self._chosen: dict[str, Chosen] = {}
        self._lock = RLock()
        self._gallery: Gallery | None = None

    @property
    def num_frames(self) -> int:
        """F, the frames a clip is sampled at."""
        return self.bundle.manifest.inputs.frames.num_frames

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.bundle.manifest.inputs.frames.size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer.load(self.bundle.path(TOKENIZER), self.bundle.manifest.inputs.texts)

    @property
    def caption_engine(self) -> Engine:
        """The loaded caption graph."""
        return self.chosen("captions").engine

    @property
    def clip_engine(self) -> Engine:
        """The loaded clip graph."""
        return self.chosen("clips").engine

    def chosen(self, name: str) -> Chosen:
        """The loaded graph ``captions`` or ``clips``, in which engine, and why.

        Raises:
            EngineError: No engine here runs it on the device.
        """
        with self._lock:  # threads that come first together load it once
            if name not in self._chosen:
                self._chosen[name] = choose(
                    self.bundle,
                    name,
                    device=self._device,
                    engine=self._asked_engine,
                    threads=self._threads,
                )
            return self._chosen[name]

    @property
    def engine(self) -> str:
        """Which engine runs each graph that has been needed so far, and why."""
        return "; ".join(
            f"{name}: {self._chosen[name] if name in self._chosen else 'not loaded yet'}"
            for name in GRAPHS
        )

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Embed texts: unit-norm float32 [Q, E].

        Raises:
            ValueError: One text instead of a list of them.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is the text {texts!r}, expected a list of texts.")
        if not texts:
            return np.empty((0, self.bundle.manifest.embed_dim), np.float32)
        tokens = self.tokenizer(texts)
        by_length = np.argsort(tokens.lengths, kind="stable")
        embeddings = np.empty((len(texts), self.bundle.manifest.embed_dim), np.float32)
        for first in range(0, len(texts), CAPTION_BATCH):
            rows = by_length[first : first + CAPTION_BATCH]
            embeddings[rows] = self.embed_tokens(tokens[rows].ids)
        return embeddings

    def embed_tokens(self, tokens: NDArray[np.int32]) -> Float32:
        """Embed token ids int32 [Q, L]: unit-norm float32 [Q, E]."""
        return cast(Float32, self.caption_engine.run({"tokens": tokens})["embedding"])

    def embed_clips(self, frames: object) -> ClipEmbeddings:
        """Embed clips.

        Args:
            frames: uint8 [B, F, 3, S, S] RGB; what numpy takes as an array or, on cuda, any array
                there that speaks DLPack or ``__cuda_array_interface__``, which goes in without a
                copy through the host. DGL-transformer needs the F of the bundle, other methods take any.

        Raises:
            ValueError: Wrong dtype or shape.
            EngineError: A device array that the engine does not take.
        """
        if not lies_on_device(frames):
            frames = np.asarray(frames)
            self._check_frames(frames)
            if not len(frames):
                no_weights = np.empty(frames.shape[:2], np.float32)
                no_embeddings = np.empty((0, self.bundle.manifest.embed_dim), np.float32)
                return ClipEmbeddings(no_embeddings, no_weights)
        elif self.chosen("clips").candidate.device == "cpu":
            raise EngineError(
                f"frames lie on a CUDA device, {self.clip_engine.description} takes them from the host. "
                "Copy them there, or open the Retriever with device='cuda'."
            )
        out = self.clip_engine.run({"frames": frames})
        return ClipEmbeddings(cast(Float32, out["embedding"]), cast(Float32, out["frame_weights"]))

    def _check_frames(self, frames: NDArray[np.generic]) -> None:
        (spec,) = self.bundle.manifest.clips.inputs
        fits = frames.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(spec.shape, frames.shape, strict=True)
        )
        if frames.dtype != spec.dtype or not fits:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}, the clip graph takes "
                f"{spec.dtype} {list(spec.shape)}. Read them with dgl_runtime.media.video.read_clips."
            )

    def search(
        self,
        query: str,
        top_k: int = 10,
        *,
        where: str | None = None,
        grouping: str = "apart",
        bank_hubness: Float32 | None = None,
    ) -> list[Hit]:
        """Find the moments most similar to a text, best first.

        Args:
            query: What the moment shows.
            top_k: Moments at the most.
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

    def tell_cut(self, query: str) -> str | None:
        """What of a query is read, in words, if it is longer than that; None: all of it."""
        return self.tokenizer.tell_cut(query)

    def embed_queries(self, queries: Sequence[str]) -> Float32:
        """Embed the texts of searches: unit-norm float32 [Q, E].

        Raises:
            DglError: One is empty.
        """
        if not all(query.strip() for query in queries):
            raise DglError("the query is empty. Say in a few words what the moment shows.")
        return self.embed_texts(queries)

    def search_embeddings(
        self, queries: Float32, top_k: int = 10, refinement: Refinement | None = None
    ) -> list[list[Hit]]:
        """As :meth:`search`, for each of unit-norm float32 [Q, E] of texts or clips."""
        return find_moments(self.gallery, queries, top_k, refinement or Refinement())

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
            window_s = self.gallery.records.typical_length_s()
        return read_example(self, Path(path), Cutting(window_s, around_s=at_s))

    def hubness(self, texts: Sequence[str]) -> Float32:
        """How near each clip of the gallery is to a bank of texts, float32 [rows].

        Give it to :meth:`search`: a clip that is near to every text then ranks lower (inverted softmax).
        The bank should hold a hundred texts or more of the kind that is searched.

        Raises:
            ValueError: No texts.
        """
        return bank_hubness(self.gallery, self.embed_texts(texts))

    @property
    def gallery(self) -> Gallery:
        """The gallery, as it was when it was last opened or added to."""
        if self._gallery is None:
            if self.gallery_folder is None:
                raise GalleryError("no gallery was given. Open Retriever(bundle, gallery).")
            self._gallery = Gallery.open(self.gallery_folder, bundle_id=self.bundle.id)
        return self._gallery

    def add_videos(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        window_s: float | None = None,
        stride_s: float | None = None,
        at_shots: bool = False,
        exclude: Sequence[str] = (),
        jobs: int = 0,
        prune: bool = False,
        show_progress: bool = False,
    ) -> IndexReport:
        """Index videos, or all videos below folders; what is there already is skipped.

        A file that was renamed is found under its new name, one that changed is indexed anew.

        Args:
            paths: Files and folders.
            window_s: Length of the windows a video is cut into; None takes it whole.
            stride_s: From one window's start to the next; None is the window's length.
            at_shots: Cut where one shot ends and the next begins, and longer shots into windows, if
                ``window_s`` is given. Needs the extra ``shots``, and decodes every frame.
            exclude: Patterns of files and folders that are passed over below the folders; see
                ``dgl_runtime.media.video_files.is_excluded``.
            jobs: Processes that decode; 0: one for each core but one, at most 4.
            prune: Drop files below the folders that are not there any more, or are excluded now.
            show_progress: Draw a progress bar on stderr.

        Returns:
            What was added, what was there, what was passed over, and which videos could not be read.

        Raises:
            MediaError: A path does not exist, or holds no video.
            GalleryError: No gallery was given, or it cannot be written.
        """
        if isinstance(paths, str | Path):
            paths = [paths]
        self.close()
        return index_videos(
            self,
            [find_path(Path(path)) for path in paths],
            Cutting(window_s, stride_s, at_shots),
            exclude=exclude,
            jobs=jobs,
            prune=prune,
            show_progress=show_progress,
        )

    def check(self) -> SelfCheck:
        """Run the golden inputs and compare with the golden results.

        Raises:
            BundleError: This machine's results differ by more than rounding, or by more than the
                bundle's precision may.
        """
        captions, clips = (
            check_graph(self.chosen(name).engine, self.bundle, name) for name in GRAPHS
        )
        return SelfCheck(captions.max_abs, clips.max_abs, captions.min_cosine, clips.min_cosine)

    def close(self) -> None:
        """Close the gallery."""
        if self._gallery is not None:
            self._gallery.close()
            self._gallery = None

    def __enter__(self) -> "Retriever":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
