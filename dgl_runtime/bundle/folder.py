"""The contract between export and serving: a folder with graphs, tokenizer, golden inputs and a manifest."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.input_spec import TextSpec
from dgl_runtime.bundle.manifest import Graph, Manifest
from dgl_runtime.errors import BundleError, reason_of

MANIFEST, GOLDEN, TOKENIZER = "manifest.json", "golden.npz", "tokenizer.json"


@dataclass(frozen=True)
class Golden:
    """A few inputs with their results, so that any machine can check itself.

    The results are the trained model's; below fp32 they are those of the graphs that passed the
    quality gate, on the machine that exported them.
    """

    tokens: NDArray[np.int32]  # [Q, L]
    lengths: NDArray[np.int64]  # [Q], of each row where it comes alone
    frames: NDArray[np.uint8]  # [N, F, 3, S, S]
    caption_embeddings: NDArray[np.float32]  # [Q, E]
    clip_embeddings: NDArray[np.float32]  # [N, E]
    frame_weights: NDArray[np.float32]  # [N, F]

    def check(self, manifest: Manifest) -> None:
        """Refuse arrays that do not fit the manifest or each other.

        Raises:
            ValueError: Says which.
        """
        queries, clips = len(self.tokens), len(self.frames)
        num_frames = manifest.inputs.frames.num_frames
        size, width = manifest.inputs.frames.size, manifest.embed_dim
        for name, dtype, shape in (
            ("tokens", np.int32, (queries, self.tokens.shape[-1])),
            ("lengths", np.int64, (queries,)),
            ("frames", np.uint8, (clips, num_frames, 3, size, size)),
            ("caption_embeddings", np.float32, (queries, width)),
            ("clip_embeddings", np.float32, (clips, width)),
            ("frame_weights", np.float32, (clips, num_frames)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape or not array.size:
                raise ValueError(
                    f"{name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}"
                )

    def save(self, path: Path) -> None:
        """Write ``golden.npz``."""
        np.savez_compressed(path, **vars(self))


class Bundle:
    """An exported model on disk."""

    def __init__(self, folder: str | Path) -> None:
        """Open a bundle; files are checked against their hashes when they are first used.

        Raises:
            BundleError: No bundle there, or its manifest does not fit.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            if not path.is_file():
                raise BundleError(
                    f"{self.folder} is not a bundle: it has no {MANIFEST}. "
                    "Give the folder that dgl-export wrote."
                )
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} cannot be read: {error}. Check the path, or export the bundle again."
            ) from error
        self.manifest = Manifest.from_json(text, path)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._checked: set[str] = set()

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, checked against its hash.

        Raises:
            BundleError: Missing, or its bytes are not those that were exported.
        """
        path = self.folder / name
        if name in self._checked:
            return path
        expected = self.manifest.files.get(name)
        if expected is None or not path.is_file():
            raise BundleError(f"bundle {self.folder} has no file {name}. Export it again.")
        if (found := sha256_of(path)) != expected:
            raise BundleError(
                f"{path} has sha256 {found[:12]}, its manifest says {expected[:12]}: the file was "
                "damaged or changed. Copy the bundle again, or export it again."
            )
        self._checked.add(name)
        return path

    def graph_path(self, graph: Graph) -> Path:
        """Path of a graph whose own file and weights have been checked."""
        self.path(graph.weights)
        return self.path(graph.file)

    @cached_property
    def golden(self) -> Golden:
        """The inputs and outputs of the self-check.

        Raises:
            BundleError: Missing, damaged, or not made by dgl-export.
        """
        path = self.path(GOLDEN)
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                golden = Golden(**_with_lengths(arrays, self.manifest.inputs.texts))
            golden.check(self.manifest)
            return golden
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{path} does not hold the golden inputs: {reason_of(error)}. Export the bundle again."
            ) from error


def _with_lengths(arrays: Mapping[str, NDArray[Any]], texts: TextSpec) -> dict[str, NDArray[Any]]:
    """Golden arrays; a file before schema 3 does not tell how long its rows are up to their end token."""
    found = dict(arrays)
    if "lengths" not in found:
        before_end = np.cumsum(found["tokens"] == texts.end_id, axis=-1) == 0
        found["lengths"] = before_end.sum(axis=-1) + 1
    return found


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
