"""The contract between export and serving: a folder with graphs, tokenizer, golden inputs and a manifest.

One set of dataclasses writes and reads the manifest. The runtime has no defaults of its own: what is not
in the manifest is an error.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import BundleError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 2
MANIFEST, GOLDEN, TOKENIZER = "manifest.json", "golden.npz", "tokenizer.json"
FORMATS = ("onnx", "openvino", "trt", "trt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# Smallest cosine to the trained model's embedding that a lower precision may have anywhere.
MIN_COSINE = {"fp16": 0.999, "bf16": 0.999, "int8": 0.99, "fp8": 0.99}
Part = TypeVar("Part", bound="DataclassInstance")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension that is a text is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One ONNX file or OpenVINO model, with the file of its weights."""

    file: str
    weights: str
    precision: str
    low_precision_nodes: int  # nodes that work in that precision or convert to it; 0 for fp32
    kept: tuple[str, ...]  # linear layers that stay in float32 because they lost too much
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Parity:
    """What the parity gate measured between the trained model and the exported graphs."""

    max_abs: float  # largest difference of any number of any unit-norm embedding
    min_cosine: float
    rank_agreement: float  # share of captions that rank the golden clips in the same order
    num_captions: int
    num_clips: int


@dataclass(frozen=True)
class Quality:
    """What a lower precision costs on captions and clips that did not calibrate it."""

    min_cosine: float  # of any embedding to the trained model's
    mean_cosine: float
    top1_agreement: float  # share of captions whose first clip is the trained model's
    recall_at_1_before: (
        float | None
    )  # percent; None where it is not known which caption fits which clip
    recall_at_1_after: float | None
    num_captions: int
    num_clips: int


@dataclass(frozen=True)
class Source:
    """Where the model came from."""

    checkpoint: str
    checkpoint_sha256: str
    version: str  # of dgl-retrieval


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime has to know about a bundle."""

    schema_version: int
    format: str  # one of FORMATS
    precision: str  # one of PRECISIONS
    method: str
    backbone: str
    backbone_sha256: str
    embed_dim: int
    num_frames: int
    frame_size: int
    mean: tuple[float, ...]  # already part of the clip graph, which takes uint8 pixels
    std: tuple[float, ...]
    sampling: str
    max_words: int
    logit_scale: float
    captions: Graph
    clips: Graph
    files: dict[str, str]  # file name -> sha256
    parity: Parity
    quality: Quality | None  # None for fp32, which parity proves equal
    source: Source

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "Manifest":
        """Read ``manifest.json``.

        Raises:
            BundleError: Not JSON, of an unknown schema version, or a field is missing or unknown.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(
                f"{where} is not a manifest: {error!r}. Export the bundle again with dgl-export."
            ) from error
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema_version {version!r}, this version reads {SCHEMA_VERSION}. "
                "Export the bundle again with dgl-export of this version."
            )
        try:
            return typed(
                cls(
                    **{
                        **data,
                        "mean": tuple(data["mean"]),
                        "std": tuple(data["std"]),
                        "captions": _graph(data["captions"]),
                        "clips": _graph(data["clips"]),
                        "parity": typed(Parity(**data["parity"])),
                        "quality": _quality(data["quality"]),
                        "source": typed(Source(**data["source"])),
                    }
                )
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise BundleError(
                f"{where} does not fit schema_version {version}: {error}. "
                "Export the bundle again with dgl-export."
            ) from error


def _graph(data: dict[str, Any]) -> Graph:
    def specs(name: str) -> tuple[TensorSpec, ...]:
        return tuple(
            typed(TensorSpec(**{**one, "shape": tuple(one["shape"])})) for one in data[name]
        )

    tensors = {name: specs(name) for name in ("inputs", "outputs")}
    return typed(Graph(**{**data, **tensors, "kept": tuple(data["kept"])}))


def _quality(data: dict[str, Any] | None) -> Quality | None:
    return None if data is None else typed(Quality(**data))


def typed(part: Part) -> Part:
    """Return a dataclass if JSON gave its fields the types they are declared with.

    Raises:
        TypeError: It did not.
    """
    for field in fields(part):
        value = getattr(part, field.name)
        kind: Any = field.type
        if get_origin(kind) is tuple or get_origin(kind) is dict:
            kind = get_origin(kind)
        elif kind in (float, float | None):
            kind = kind | int  # JSON writes 1.0 and 1 alike
        if not isinstance(value, kind):
            raise TypeError(f"{field.name} is {value!r}")
    return part


@dataclass(frozen=True)
class Golden:
    """A few inputs with the trained model's outputs, so that any machine can check itself."""

    tokens: NDArray[np.int32]  # [Q, L]
    frames: NDArray[np.uint8]  # [N, F, 3, S, S]
    caption_embeddings: NDArray[np.float32]  # [Q, E]
    clip_embeddings: NDArray[np.float32]  # [N, E]
    frame_weights: NDArray[np.float32]  # [N, F]

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
        """The inputs and outputs of the self-check."""
        with np.load(self.path(GOLDEN)) as arrays:
            return Golden(**arrays)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
