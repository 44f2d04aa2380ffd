"""Encoder: a bundle that embeds texts, clips and pictures on one device; it knows no gallery."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.folder import TOKENIZER, Bundle
from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.manifest import CLIP_ENCODER, GRAPHS, TEXT_ENCODER
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.encoder.choice import Chosen, choose
from dgl_runtime.encoder.input_check import check_inputs
from dgl_runtime.encoder.self_check import check_graph
from dgl_runtime.encoder.shared_frames import SharedFrames
from dgl_runtime.engines.candidates import AUTO, check_names
from dgl_runtime.engines.device_arrays import lies_on_device
from dgl_runtime.engines.engine import Engine
from dgl_runtime.errors import DglError, EngineError
from dgl_runtime.media.pixels import preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | NDArray[np.uint8]

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


class Encoder:
    """A bundle's two graphs, each loaded when it is first needed. Threads may share an encoder.

    Example:
        encoder = Encoder("bundle")
        similarity = encoder.embed_texts(["a dog"]) @ encoder.embed_clips(frames).embeddings.T
    """

    def __init__(
        self, bundle: str | Path, *, device: str = "cpu", engine: str = AUTO, threads: int = 0
    ) -> None:
        """Open a bundle.

        Args:
            bundle: The folder that dgl-export wrote.
            device: ``cpu``; ``cuda``, without a fallback; or ``auto``: cuda if an engine really
                works there, else cpu.
            engine: ``onnx``, ``openvino``, ``tensorrt`` or ``trt-rtx``, without a fallback;
                ``auto``: for each graph the fastest that is installed and passes the self-check,
                measured once on this machine; or ``triton:HOST:PORT``, a server whose repository
                ``dgl-bundle triton`` wrote (``tritons:`` over TLS), checked before it is used.
            threads: CPU threads for encoding; 0 lets the engine choose.

        Raises:
            BundleError: No bundle there, or it does not fit this version.
            EngineError: Device or engine do not exist.
        """
        check_names(device, engine)
        self.bundle = Bundle(bundle)
        self._device, self._asked_engine, self._threads = device, engine, threads
        self._chosen: dict[str, Chosen] = {}
        self._lock = RLock()

    @property
    def arguments(self) -> dict[str, Any]:
        """What opens an encoder like this one elsewhere: ``Encoder(**arguments)``."""
        return {
            "bundle": self.bundle.folder.resolve(),
            "device": self._device,
            "engine": self._asked_engine,
            "threads": self._threads,
        }

    @property
    def input_spec(self) -> InputSpec:
        """What the model wants of frames and texts."""
        return self.bundle.manifest.inputs

    @property
    def num_frames(self) -> int:
        """F, the frames a clip is sampled at."""
        return self.input_spec.frames.num_frames

    @property
    def frame_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.input_spec.frames.size

    @property
    def embed_dim(self) -> int:
        """E, the width of an embedding."""
        return self.bundle.manifest.embed_dim

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer.load(self.bundle.path(TOKENIZER), self.input_spec.texts)

    def chosen(self, name: str) -> Chosen:
        """The loaded graph ``text_encoder`` or ``clip_encoder``, in which engine, and why.

        Raises:
            ValueError: There is no such graph.
            EngineError: No engine here runs it on the device.
        """
        if name not in GRAPHS:
            raise ValueError(f"{name!r} is no graph of a bundle, expected {' or '.join(GRAPHS)}.")
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
    def text_engine(self) -> Engine:
        """The loaded text encoder."""
        return self.chosen(TEXT_ENCODER).engine

    @property
    def clip_engine(self) -> Engine:
        """The loaded clip encoder."""
        return self.chosen(CLIP_ENCODER).engine

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
            return np.empty((0, self.embed_dim), np.float32)
        tokens = self.tokenizer(texts)
        by_length = np.argsort(tokens.lengths, kind="stable")
        embeddings = np.empty((len(texts), self.embed_dim), np.float32)
        for first in range(0, len(texts), CAPTION_BATCH):
            rows = by_length[first : first + CAPTION_BATCH]
            embeddings[rows] = self.embed_tokens(tokens[rows].ids)
        return embeddings

    def embed_tokens(self, tokens: NDArray[np.int32]) -> Float32:
        """Embed token ids int32 [Q, L]: unit-norm float32 [Q, E]."""
        return cast(Float32, self.text_engine.run({"tokens": tokens})["embedding"])

    def embed_queries(self, queries: Sequence[str]) -> Float32:
        """Embed the texts of searches: unit-norm float32 [Q, E].

        Raises:
            DglError: One is empty.
        """
        if not all(query.strip() for query in queries):
            raise DglError("the query is empty. Say in a few words what the moment shows.")
        return self.embed_texts(queries)

    def tell_cut(self, query: str) -> str | None:
        """What of a query is read, in words, if it is longer than that; None: all of it."""
        return self.tokenizer.tell_cut(query)

    def embed_clips(self, frames: object) -> ClipEmbeddings:
        """Embed clips.

        Args:
            frames: uint8 [B, F, 3, S, S] RGB; what numpy takes as an array or, on cuda, any array
                there that speaks DLPack or ``__cuda_array_interface__``, which is read in place
                (zero-copy). DGL-transformer needs the F of the bundle, other methods take any.

        Raises:
            ValueError: Wrong dtype or shape.
            EngineError: A device array that the engine does not take.
        """
        if not lies_on_device(frames):
            frames = np.asarray(frames)
            self._check_frames(frames)
            if not len(frames):
                no_weights = np.empty(frames.shape[:2], np.float32)
                return ClipEmbeddings(np.empty((0, self.embed_dim), np.float32), no_weights)
            if self._shares_frames:
                weights = np.full(frames.shape[:2], 1 / frames.shape[1], np.float32)
                return ClipEmbeddings(self._shared_frames.embed_clips(frames), weights)
        elif self.chosen(CLIP_ENCODER).candidate.device != "cuda":
            raise EngineError(
                f"frames lie on a CUDA device, {self.clip_engine.description} takes them from the host. "
                "Copy them there, or open the bundle with device='cuda'."
            )
        out = self.clip_engine.run({"frames": frames})
        return ClipEmbeddings(cast(Float32, out["embedding"]), cast(Float32, out["frame_weights"]))

    @property
    def _shares_frames(self) -> bool:
        """Whether a clip is the mean of its frames, in an engine that takes them one by one."""
        one_length = self.chosen(CLIP_ENCODER).candidate.engine not in ("onnx", "openvino")
        return self.bundle.manifest.frame_wise and not one_length

    @cached_property
    def _shared_frames(self) -> SharedFrames:
        return SharedFrames(
            lambda frames: cast(Float32, self.clip_engine.run({"frames": frames})["embedding"])
        )

    def _check_frames(self, frames: NDArray[np.generic]) -> None:
        (spec,) = self.bundle.manifest.clip_encoder.inputs
        fits = frames.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(spec.shape, frames.shape, strict=True)
        )
        if frames.dtype != spec.dtype or not fits:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}, the clip encoder takes "
                f"{spec.dtype} {list(spec.shape)}. Read them with dgl_runtime.media.video.read_clips."
            )

    def embed_pictures(self, pictures: "Picture | Sequence[Picture]") -> Float32:
        """Embed pictures, each as a clip that shows it from beginning to end: unit-norm float32 [N, E].

        Args:
            pictures: One or several: Pillow images of any mode, upright, or uint8 [H, W, 3] RGB, of
                any sizes.

        Raises:
            ValueError: An array is no picture.
        """
        is_stack = isinstance(pictures, np.ndarray) and pictures.ndim == 4
        are_several = is_stack or isinstance(pictures, Sequence)
        listed = cast("Sequence[Picture]", pictures if are_several else [pictures])
        for picture in listed:
            if isinstance(picture, np.ndarray):
                _check_picture(picture)
        shown = [preprocess(picture, self.input_spec.frames) for picture in listed]
        stills = np.reshape(shown, (-1, 1, 3, self.frame_size, self.frame_size)).astype(np.uint8)
        return self.embed_clips(np.repeat(stills, self.num_frames, axis=1)).embeddings

    def check(self) -> SelfCheck:
        """Run the golden inputs and compare with the golden results.

        Raises:
            BundleError: Texts or pictures become other tokens or pixels than the model's, or this machine's
                results differ by more than rounding, or by more than the bundle's precision may.
        """
        check_inputs(self.bundle, self.tokenizer)
        captions, clips = (
            check_graph(self.chosen(name).engine, self.bundle, name) for name in GRAPHS
        )
        return SelfCheck(captions.max_abs, clips.max_abs, captions.min_cosine, clips.min_cosine)


def _check_picture(picture: NDArray[np.generic]) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"a picture is {picture.dtype} {list(picture.shape)}, expected uint8 [H, W, 3] RGB or a "
            "Pillow image."
        )
