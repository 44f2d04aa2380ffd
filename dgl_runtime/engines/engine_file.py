"""Built engines beside the graphs of a bundle: BUNDLE/engines/, each with a sidecar that says what it fits.

An engine runs with one version of one library, mostly on one kind of GPU, and its format tells none
of that before it is loaded. So the file's name and its sidecar do.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgl_runtime.engines.cuda_device import Gpu
from dgl_runtime.engines.tensor_spec import TensorSpec, read_specs
from dgl_runtime.errors import EngineError
from dgl_runtime.typed_fields import typed

SCHEMA_VERSION = 1
FOLDER = "engines"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Shapes of the graph's input that an engine takes: from minimum to maximum, fastest at best."""

    minimum: Shape
    best: Shape
    maximum: Shape

    def covers(self, shape: Shape) -> bool:
        """Whether an input of this shape may run."""
        return len(shape) == len(self.minimum) and all(
            low <= size <= high
            for low, size, high in zip(self.minimum, shape, self.maximum, strict=True)
        )

    def __str__(self) -> str:
        return f"{list(self.minimum)} to {list(self.maximum)}"


@dataclass(frozen=True)
class EngineInfo:
    """The sidecar of an engine file."""

    schema_version: int
    library: str  # one of dgl_runtime.engines.tensorrt_library.LIBRARIES
    library_version: str
    gpu: str  # "" for a portable engine
    compute_capability: str  # such as "9.0"; "" for a portable engine
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    graph_sha256: str  # of the ONNX file and its weights
    engine_sha256: str

    def to_json(self) -> str:
        """The text of the sidecar."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> "EngineInfo":
        """Read a sidecar.

        Raises:
            EngineError: Not JSON, another schema version, or a field is missing, unknown or of another type.
        """
        try:
            data = json.loads(text)
            if (version := data["schema_version"]) != SCHEMA_VERSION:
                raise ValueError(
                    f"schema_version is {version!r}, this version reads {SCHEMA_VERSION}"
                )
            tensors = {side: read_specs(data[side]) for side in ("inputs", "outputs")}
            profiles = tuple(
                Profile(**{name: tuple(shape) for name, shape in one.items()})
                for one in data["profiles"]
            )
            info = typed(cls(**{**data, **tensors, "profiles": profiles}))
            for fault in _faults(info):
                raise ValueError(fault)
            return info
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EngineError(
                f"{where} is not the sidecar of an engine: {error!r}. {remedy(where)}"
            ) from error


def _faults(info: EngineInfo) -> Iterator[str]:
    """What is wrong with values of the right types."""
    if len(info.inputs) != 1 or not info.outputs or not info.profiles:
        yield (
            f"it has {len(info.inputs)} inputs, {len(info.outputs)} outputs and {len(info.profiles)} "
            "profiles, expected 1 input and at least 1 of the others"
        )
    (input_,) = info.inputs
    for spec in (input_, *info.outputs):
        np.dtype(spec.dtype)  # raises TypeError
        if not all(isinstance(dim, str | int) for dim in spec.shape):
            yield f"{spec.name} has dimensions {list(spec.shape)}, expected names and numbers"
        if unknown := {dim for dim in spec.shape if isinstance(dim, str)} - set(input_.shape):
            yield f"{spec.name} has dimensions {unknown} that are none of {input_.name}"
    for profile in info.profiles:
        shapes = (profile.minimum, profile.best, profile.maximum)
        numbers = all(isinstance(dim, int) for shape in shapes for dim in shape)
        if not numbers or {len(shape) for shape in shapes} != {len(input_.shape)}:
            yield f"profile {shapes} does not fit {input_.name} {list(input_.shape)}"
        elif not all(1 <= low <= best <= high for low, best, high in zip(*shapes, strict=True)):
            yield f"profile {shapes} does not rise"


def engine_path(graph: Path, library: str, version: str, gpu: Gpu | None) -> Path:
    """Where the engine of a graph stands; ``gpu`` is None for a portable one."""
    key = "portable" if gpu is None else gpu.key
    return graph.parent / FOLDER / f"{graph.stem}.{library}-{version}-{key}.engine"


def graph_digest(graph: Path) -> str:
    """sha256 of an ONNX file followed by its weights (``<file>.data``)."""
    digest = hashlib.sha256()
    for path in (graph, graph.with_name(f"{graph.name}.data")):
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def save_engines(engines: Mapping[Path, tuple[EngineInfo, bytes]]) -> None:
    """Write engines of one folder with their sidecars, all or none.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    files: dict[Path, bytes] = {}
    for path, (info, engine) in engines.items():
        files |= {_sidecar(path): info.to_json().encode(), path: engine}
    try:
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            _temporary(path).write_bytes(content)
        for path in files:
            _temporary(path).rename(path)
    finally:
        for path in files:
            _temporary(path).unlink(missing_ok=True)
            with suppress(OSError):  # a folder that is not empty stays
                path.parent.rmdir()


def move_engine(path: Path, folder: Path) -> Path:
    """Move an engine file and its sidecar to another folder of the same disk; returns its new path."""
    folder.mkdir(exist_ok=True)
    for file in (_sidecar(path), path):
        file.replace(folder / file.name)
    return folder / path.name


def read_engine(path: Path, graph: Path, gpu: Gpu | None) -> tuple[EngineInfo, bytes]:
    """Read an engine that fits the graph, the library and the GPU its path names.

    Raises:
        EngineError: Missing, of another version, GPU or graph, or damaged; says how to build it again.
    """
    if not path.is_file():
        others = sorted(one.name for one in path.parent.glob(f"{graph.stem}.*.engine"))
        raise EngineError(
            f"{path} is missing: an engine fits one version of one library and one kind of GPU, and "
            f"of {graph.name} there is {', '.join(others) or 'none'}. {remedy(path)}"
        )
    info, engine = _both(path)
    found = engine_path(graph, info.library, info.library_version, _gpu_of(info))
    checks: list[tuple[str, Any, Any]] = [
        ("was built as", found.name, path.name),
        ("was built for", str(_gpu_of(info)), str(gpu)),
        ("was built from a graph with sha256", info.graph_sha256, graph_digest(graph)),
        ("should have sha256", info.engine_sha256, hashlib.sha256(engine).hexdigest()),
    ]
    for what, theirs, ours in checks:
        if theirs != ours:
            raise EngineError(f"{path} {what} {theirs}, but here it is {ours}. {remedy(path)}")
    return info, engine


def read_engines(graph: Path, library: str) -> list[tuple[EngineInfo, bytes]]:
    """All engines of a graph that one library made, for whatever GPUs and of whatever versions.

    Raises:
        EngineError: One is damaged, or of another graph; says how to build it again.
    """
    there = (graph.parent / FOLDER).glob(f"{graph.stem}.{library}-*.engine")
    return [read_engine(path, graph, _gpu_of(_both(path)[0])) for path in sorted(there)]


def _both(path: Path) -> tuple[EngineInfo, bytes]:
    """The sidecar of an engine file, and what the file holds."""
    try:
        text = _sidecar(path).read_text(encoding="utf-8")
        engine = path.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} cannot be used without its sidecar: {error}. {remedy(path)}"
        ) from error
    return EngineInfo.from_json(text, _sidecar(path)), engine


def _gpu_of(info: EngineInfo) -> Gpu | None:
    return Gpu(info.gpu, info.compute_capability) if info.gpu else None


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def remedy(path: Path) -> str:
    """What to do about an engine file that cannot be used."""
    return f"Build it for this machine: dgl-bundle rebuild {path.parent.parent}"
