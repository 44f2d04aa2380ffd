"""ONNX files -> TensorRT engines, with TensorRT 10, 11 or TensorRT for RTX by one code path.

The precision of every tensor is the one the ONNX file says (a strongly typed network): the library may
choose kernels, never numbers.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgl_runtime.bundle.folder import MANIFEST, Bundle
from dgl_runtime.bundle.manifest import Graph
from dgl_runtime.encoder.choice import open_graph
from dgl_runtime.encoder.self_check import GRAPHS, check_graph
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.cuda_device import CudaDevice, Gpu
from dgl_runtime.engines.engine_file import (
    FOLDER,
    SCHEMA_VERSION,
    EngineInfo,
    Profile,
    engine_path,
    graph_digest,
    move_engine,
    save_engines,
)
from dgl_runtime.engines.tensorrt_library import (
    PORTABLE,
    load_library,
    make_logger,
    said_by,
    version_of,
)
from dgl_runtime.errors import DglError, EngineError, ExportError
from dgl_runtime.plain_path import plain_path

WORKSPACE_BYTES = 4 << 30  # what a kernel may use beside its tensors, at most
LIBRARIES = {"trt": "tensorrt", "trt-rtx": "trt-rtx"}  # format of a bundle -> library
# Batch sizes: the smallest, the one kernels are chosen for, the largest.
CAPTION_BATCH, CLIP_BATCH = (1, 8, 64), (1, 4, 16)
SHORTEST, USUAL = 2, 16  # tokens of a caption: start and end alone; a sentence


def library_of(bundle: Path) -> str:
    """The library of a bundle's engines, by its format.

    Raises:
        BundleError: No bundle there.
        ExportError: Its format has no engines.
    """
    form = Bundle(bundle).manifest.format
    if form not in LIBRARIES:
        raise ExportError(
            f"{bundle} is of format {form}, which has no engines to build; "
            f"{' and '.join(LIBRARIES)} have. Export it with --format trt."
        )
    return LIBRARIES[form]


def rebuild(bundle: Path, library: str) -> list[Path]:
    """Build the engines of a bundle for this machine and, where there is a GPU, run them.

    They take the place of earlier ones only when they give the bundle's golden results.

    Args:
        bundle: The folder that dgl-export wrote.
        library: ``tensorrt`` or ``trt-rtx``.

    Returns:
        The two engine files; their sidecars stand beside them.

    Raises:
        BundleError: No bundle there, or a damaged one.
        EngineError: The library is missing or, for ``tensorrt``, a GPU.
        ExportError: A graph does not build, or its engine fails the self-check.
        OSError: The disk is full or cannot be written.
    """
    opened = Bundle(bundle)
    manifest = opened.manifest
    for graph in (manifest.captions, manifest.clips):
        opened.graph_path(graph)  # checks the hashes
    with _same_bundle(opened) as making:
        paths = write_engines(
            making.folder,
            (manifest.captions, manifest.clips),
            max_tokens=manifest.inputs.texts.max_tokens,
            num_frames=manifest.inputs.frames.num_frames,
            library=library,
        )
        if not why_not_run():
            _check(making, library)
        return [move_engine(path, opened.folder / FOLDER) for path in paths]


@contextmanager
def _same_bundle(bundle: Bundle) -> Iterator[Bundle]:
    """The same bundle in a folder beside its files, for the time of building."""
    folder = bundle.folder / f".rebuild.{os.getpid()}"
    try:
        folder.mkdir()
        for name in (MANIFEST, *bundle.manifest.files):
            try:
                (folder / name).hardlink_to(bundle.folder / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(bundle.folder / name, folder / name)
        yield Bundle(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(bundle: Bundle, library: str) -> None:
    try:
        for name in GRAPHS:
            engine = open_graph(bundle, name, Candidate(library, "cuda"), threads=0)
            check_graph(engine, bundle, name)
    except DglError as error:
        raise ExportError(f"the engines were built, but are not kept: {error}") from error


def why_not_run() -> str:
    """Why engines that are built here cannot be run here; empty if they can."""
    try:
        CudaDevice()
    except EngineError as error:
        return str(error)
    return ""


def write_engines(
    folder: Path, graphs: tuple[Graph, Graph], *, max_tokens: int, num_frames: int, library: str
) -> list[Path]:
    """Build the engines of a caption graph and a clip graph that lie in a folder; write both or none."""
    captions, clips = graphs
    built = [
        described_engine(folder, captions, caption_profiles(captions, max_tokens), library),
        described_engine(folder, clips, clip_profiles(clips, num_frames), library),
    ]
    save_engines({path: (info, engine) for path, info, engine in built})
    return [path for path, _, _ in built]


def described_engine(
    folder: Path, graph: Graph, profiles: tuple[Profile, ...], library: str
) -> tuple[Path, EngineInfo, bytes]:
    """Build the engine of a graph that lies in a folder: where it belongs, its sidecar, its bytes."""
    module, gpu = require_builder(library)
    path = folder / graph.file
    engine = build_engine(path, profiles, module)
    info = EngineInfo(
        schema_version=SCHEMA_VERSION,
        library=library,
        library_version=module.__version__,
        gpu="" if gpu is None else gpu.name,
        compute_capability="" if gpu is None else gpu.compute_capability,
        precision=graph.precision,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=profiles,
        graph_sha256=graph_digest(path),
        engine_sha256=hashlib.sha256(engine).hexdigest(),
    )
    return engine_path(path, library, module.__version__, gpu), info, engine


def require_builder(library: str) -> tuple[Any, Gpu | None]:
    """The library's module and the GPU it builds for, which is None where engines are portable.

    Raises:
        EngineError: The library is missing or, for ``tensorrt``, a GPU.
    """
    module = load_library(library)
    # A driver first: TensorRT without one cannot say what is wrong.
    return module, None if library in PORTABLE else CudaDevice().gpu


def caption_profiles(captions: Graph, max_tokens: int) -> tuple[Profile, ...]:
    """One query at a time, and up to 64 captions; any length the tokenizer makes, if the graph allows it."""
    (spec,) = captions.inputs
    shortest, usual, longest = SHORTEST, min(USUAL, max_tokens), max_tokens
    if isinstance(spec.shape[1], int):
        shortest = usual = longest = spec.shape[1]
    low, best, high = CAPTION_BATCH
    return (
        Profile((1, shortest), (1, usual), (1, longest)),
        Profile((low, shortest), (best, usual), (high, longest)),
    )


def clip_profiles(clips: Graph, num_frames: int) -> tuple[Profile, ...]:
    """1 to 16 clips of ``num_frames`` frames or, where the graph allows it, of fewer.

    There is none for a single clip: with a batch fixed at 1, TensorRT for RTX 1.7 fails on the float16
    graph that averages frames (MyelinCheckException in formats.cpp).
    """
    (spec,) = clips.inputs
    picture = tuple(dim for dim in spec.shape[2:] if isinstance(dim, int))
    fewest = 1 if isinstance(spec.shape[1], str) else num_frames
    low, best, high = CLIP_BATCH
    return (
        Profile(
            (low, fewest, *picture), (best, num_frames, *picture), (high, num_frames, *picture)
        ),
    )


def build_engine(graph: Path, profiles: Sequence[Profile], library: Any) -> bytes:  # noqa: ANN401
    """Build the engine of an ONNX file with one input.

    Args:
        graph: The file; its weights lie beside it.
        profiles: Shapes of the input to prepare for, at least one.
        library: The module ``tensorrt`` or ``tensorrt_rtx``.

    Returns:
        The serialized engine; two builds of one graph differ.

    Raises:
        ExportError: The parser or the builder refuses; the message holds their own words.
    """
    log = make_logger(library)
    try:
        builder = library.Builder(log)
    except TypeError as error:  # what the bindings raise when the library gives them nothing
        raise ExportError(
            f"{library.__name__} {library.__version__} does not start: {said_by(log)}. Check its "
            "libraries and the NVIDIA driver."
        ) from error
    network = builder.create_network(_network_flags(library))
    parser = library.OnnxParser(network, log)
    with plain_path(graph) as plain:
        is_read = parser.parse_from_file(str(plain))
    if not is_read:
        faults = "; ".join(_fault(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(
            f"{library.__name__} {library.__version__} cannot read {graph}: {faults or said_by(log)}."
        )
    if network.num_inputs != 1:
        raise ExportError(f"{graph} has {network.num_inputs} inputs, expected 1. Export it again.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(library.BuilderFlag.TF32)  # it rounds float32 factors to 11 bits
    name = network.get_input(0).name
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(name, shapes.minimum, shapes.best, shapes.maximum)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"{library.__name__} {library.__version__} cannot build {graph} for "
            f"{' and '.join(map(str, profiles))}: {said_by(log)}."
        )
    return bytes(engine)


def _network_flags(library: Any) -> int:  # noqa: ANN401
    """Strongly typed; from TensorRT 11 on every network is, and the flag is deprecated."""
    if library.__name__.startswith("tensorrt_rtx") or version_of(library) < (11, 0):
        return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _fault(error: Any) -> str:  # noqa: ANN401
    reason = " ".join(error.desc().split())[:300]
    name, operator = error.node_name(), error.node_operator()
    return f"node {name} ({operator}): {reason}" if operator else reason
