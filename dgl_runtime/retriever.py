"""Retriever: the public face. Open a bundle, add videos to a gallery, find moments by text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle import TOKENIZER, Bundle
from dgl_runtime.engines import Engine
from dgl_runtime.engines.candidates import AUTO, check_names
from dgl_runtime.engines.choice import Chosen, choose
from dgl_runtime.engines.device_arrays import lies_on_device
from dgl_runtime.errors import DglError, EngineError, GalleryError
from dgl_runtime.gallery import APPROXIMATE_PAYS_FROM, Gallery
from dgl_runtime.index import IndexReport, index_videos
from dgl_runtime.self_check import GRAPHS, check_graph
from dgl_runtime.tokenizer import Tokenizer

Float32 = NDArray[np.float32]


# Captions run together, with others of about their length: a batch is as long as its longest.
CAPTION_BATCH = 32


@dataclass(frozen=True)
class ClipEmbeddings:
    """What the clip encoder says of a batch of clips."""

    embeddings: Float32  # [B, E], unit norm
    frame_weights: Float32  # [B, F], how much each frame counted; rows sum to 1


@dataclass(frozen=True)
class Hit:
    """A moment that was found."""

    video: str
    start_s: float
    end_s: float
    similarity: float  # cosine, -1 to 1
    frame_weights: tuple[float, ...]


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
        return self.bundle.manifest.num_frames

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.bundle.manifest.frame_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer.load(self.bundle.path(TOKENIZER))

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
        tokens = self.tokenizer(texts, self.bundle.manifest.max_words)
        lengths = tokens.argmax(axis=1) + 1  # the end token has the largest id
        by_length = np.argsort(lengths, kind="stable")
        embeddings = np.empty((len(texts), self.bundle.manifest.embed_dim), np.float32)
        for first in range(0, len(texts), CAPTION_BATCH):
            rows = by_length[first : first + CAPTION_BATCH]
            embeddings[rows] = self.embed_tokens(tokens[rows, : lengths[rows].max()])
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
                f"{spec.dtype} {list(spec.shape)}. Read them with dgl_runtime.video.read_clips."
            )

    def search(self, query: str, top_k: int = 10) -> list[Hit]:
        """Find the moments most similar to a text, best first.

        Raises:
            DglError: The query is empty.
            GalleryError: No gallery, or it belongs to another bundle.
        """
        if not query.strip():
            raise DglError("the query is empty. Say in a few words what the moment shows.")
        gallery = self.gallery
        approximate = len(gallery) >= APPROXIMATE_PAYS_FROM
        rows, similarities = gallery.search(
            self.embed_texts([query]), top_k, approximate=approximate
        )
        return [
            self._hit(gallery, int(row), float(similarity))
            for row, similarity in zip(rows[0], similarities[0], strict=True)
        ]

    @staticmethod
    def _hit(gallery: Gallery, row: int, similarity: float) -> Hit:
        clip = gallery.clips[row]
        weights = tuple(float(weight) for weight in gallery.frame_weights[row])
        return Hit(clip.video, clip.start_s, clip.end_s, similarity, weights)

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
        show_progress: bool = False,
    ) -> IndexReport:
        """Index videos, or all videos below folders; what is there already is skipped.

        Args:
            paths: Files and folders.
            window_s: Length of the windows a video is cut into; None takes it whole.
            stride_s: From one window's start to the next; None is the window's length.
            show_progress: Draw a progress bar on stderr.

        Returns:
            What was added, what was there, and which videos could not be read.

        Raises:
            MediaError: A path does not exist, or holds no video.
            GalleryError: No gallery was given, or it cannot be written.
        """
        if isinstance(paths, str | Path):
            paths = [paths]
        self.close()
        return index_videos(
            self, map(Path, paths), (window_s, stride_s), show_progress=show_progress
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
