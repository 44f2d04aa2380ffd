"""The manifest of a bundle: what a runtime has to know of a model, as manifest.json; earlier schemas too.

One set of dataclasses writes and reads it. The runtime has no defaults of its own: what is not in the
manifest is an error.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgl_runtime.bundle.input_spec import InputSpec, clip_frames, clip_texts
from dgl_runtime.engines.tensor_spec import TensorSpec, read_specs
from dgl_runtime.errors import BundleError
from dgl_runtime.typed_fields import typed

SCHEMA_VERSION = 3
FORMATS = ("onnx", "openvino", "trt", "trt-rtx")
GRAPHS = TEXT_ENCODER, CLIP_ENCODER = "text_encoder", "clip_encoder"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# Smallest cosine to the trained model's embedding that a lower precision may have anywhere.
MIN_COSINE = {"fp16": 0.999, "bf16": 0.999, "int8": 0.99, "fp8": 0.99}
Expected = dict[str, tuple[str, list[int | str]]]
_MOVED_INTO_SOURCE = ("method", "backbone", "backbone_sha256", "logit_scale")  # after schema 2


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
    """Where the model came from; no runtime needs it."""

    method: str
    backbone: str
    backbone_sha256: str
    logit_scale: float  # times the cosine it is a logit of training
    checkpoint: str
    checkpoint_sha256: str
    version: str  # of dgl-retrieval
    licence: str = "unknown"  # of the backbone's weights


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime has to know about a bundle."""

    schema_version: int  # of the file it was read from
    format: str  # one of FORMATS
    precision: str  # one of PRECISIONS
    embed_dim: int
    inputs: InputSpec
    text_encoder: Graph
    clip_encoder: Graph
    files: dict[str, str]  # file name -> sha256
    parity: Parity
    quality: Quality | None  # None for fp32, which parity proves equal
    source: Source
    frame_wise: bool = False  # a clip's embedding is the mean of its frames', unit-norm again

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps({**asdict(self), "schema_version": SCHEMA_VERSION}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "Manifest":
        """Read ``manifest.json``.

        Raises:
            BundleError: Not JSON, of an unknown schema version, or a field is missing, unknown or
                not what a runtime can work with.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BundleError(
                f"{where} is not a manifest: {error!r}. Export the bundle again with dgl-export."
            ) from error
        if version not in (2, SCHEMA_VERSION):
            raise BundleError(
                f"{where} has schema_version {version!r}, this version reads 2 and {SCHEMA_VERSION}. "
                "Export the bundle again with dgl-export of this version."
            )
        try:
            data = from_schema_2(data) if version == 2 else data
            manifest = typed(
                cls(
                    **{
                        **data,
                        "inputs": InputSpec.from_json(data["inputs"]),
                        TEXT_ENCODER: _graph(data[TEXT_ENCODER]),
                        CLIP_ENCODER: _graph(data[CLIP_ENCODER]),
                        "parity": typed(Parity(**data["parity"])),
                        "quality": _quality(data["quality"]),
                        "source": typed(Source(**data["source"])),
                    }
                )
            )
            for fault in _faults(manifest):
                raise ValueError(fault)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(
                f"{where} does not fit schema_version {version}: {error}. "
                "Export the bundle again with dgl-export."
            ) from error
        return manifest


def from_schema_2(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of schema 2 as those of today: every model then was a CLIP, and fed as CLIP is.

    Raises:
        KeyError: A field is missing.
    """
    rest = dict(data)
    frames = clip_frames(
        rest.pop("num_frames"), rest.pop("frame_size"), rest.pop("mean"), rest.pop("std")
    )
    sampling = rest.pop("sampling")
    if sampling == "centres of equal segments":
        sampling = frames.sampling
    inputs = {
        "frames": {**asdict(frames), "sampling": sampling},
        "texts": asdict(clip_texts(rest.pop("max_words"))),
    }
    graphs = {TEXT_ENCODER: rest.pop("captions"), CLIP_ENCODER: rest.pop("clips")}
    moved = {name: rest.pop(name) for name in _MOVED_INTO_SOURCE}
    return {**rest, **graphs, "inputs": inputs, "source": {**moved, **rest["source"]}}


def _graph(data: dict[str, Any]) -> Graph:
    tensors = {name: read_specs(data[name]) for name in ("inputs", "outputs")}
    return typed(Graph(**{**data, **tensors, "kept": tuple(data["kept"])}))


def _quality(data: dict[str, Any] | None) -> Quality | None:
    return None if data is None else typed(Quality(**data))


def _faults(manifest: Manifest) -> Iterator[str]:
    """What is wrong with values of the right types."""
    if manifest.format not in FORMATS:
        yield f"format is {manifest.format!r}, known are {', '.join(FORMATS)}"
    if manifest.precision not in PRECISIONS:
        yield f"precision is {manifest.precision!r}, known are {', '.join(PRECISIONS)}"
    if manifest.embed_dim < 1:
        yield f"embed_dim is {manifest.embed_dim}, it must be 1 or more"
    yield from manifest.inputs.frames.faults()
    yield from manifest.inputs.texts.faults()
    if not 0 < (scale := manifest.source.logit_scale) < math.inf:
        yield f"logit_scale is {scale}, it must be a positive number"
    for name, digest in manifest.files.items():
        if Path(name).name != name or not isinstance(digest, str):
            yield f"files has {name!r}: {digest!r}, expected the name of a file in the bundle: its sha256"
    yield from _graph_faults(TEXT_ENCODER, manifest.text_encoder, manifest)
    yield from _graph_faults(CLIP_ENCODER, manifest.clip_encoder, manifest)


def _graph_faults(name: str, graph: Graph, manifest: Manifest) -> Iterator[str]:
    if graph.precision != manifest.precision:
        yield f"{name} is {graph.precision}, precision is {manifest.precision}"
    size = manifest.inputs.frames.size
    # A graph may fix these: prompts for each frame, texts padded to one length.
    fixed = {"frames": manifest.inputs.frames.num_frames}
    if (length := manifest.inputs.texts.pad_to) is not None:
        fixed["length"] = length
    # name -> dtype and dimensions; those that are texts are free, under any name
    inputs: Expected = {"tokens": ("int32", ["batch", "length"])}
    outputs: Expected = {"embedding": ("float32", ["batch", manifest.embed_dim])}
    if name == CLIP_ENCODER:
        inputs = {"frames": ("uint8", ["batch", "frames", 3, size, size])}
        outputs["frame_weights"] = ("float32", ["batch", "frames"])
    for side, found, expected in (
        ("inputs", graph.inputs, inputs),
        ("outputs", graph.outputs, outputs),
    ):
        if [one.name for one in found] != list(expected):
            yield f"{name}.{side} are {[one.name for one in found]}, expected {list(expected)}"
        for one in found:
            dtype, dims = expected[one.name]
            fits = len(one.shape) == len(dims) and all(
                _fits(*pair, fixed) for pair in zip(one.shape, dims, strict=True)
            )
            if one.dtype != dtype or not fits:
                yield f"{name}.{side} has {one.name} {one.dtype} {list(one.shape)}, expected {dtype} {dims}"


def _fits(has: object, expected: int | str, fixed: Mapping[str, int]) -> bool:
    if isinstance(expected, str):
        return isinstance(has, str) or (expected in fixed and has == fixed[expected])
    return has == expected
