"""A bundle's TensorRT engines: built for this machine, and kept only if they give its golden results."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgl_runtime.bundle.folder import MANIFEST, Bundle
from dgl_runtime.bundle.input_spec import TextSpec
from dgl_runtime.bundle.manifest import GRAPHS, Graph
from dgl_runtime.encoder.choice import open_graph
from dgl_runtime.encoder.self_check import check_graph
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.engine_file import FOLDER, Profile, move_engine, save_engines
from dgl_runtime.engines.tensorrt_build import described_engine, why_not_run
from dgl_runtime.errors import DglError, ExportError

LIBRARIES = {"trt": "tensorrt", "trt-rtx": "trt-rtx"}  # format of a bundle -> library
# Batch sizes: the smallest, the one kernels are chosen for, the largest.
CAPTION_BATCH, CLIP_BATCH = (1, 8, 64), (1, 4, 16)
USUAL = 16  # tokens of a caption that is a sentence


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
    for graph in (manifest.text_encoder, manifest.clip_encoder):
        opened.graph_path(graph)  # checks the hashes
    with _same_bundle(opened) as making:
        paths = write_engines(
            making.folder,
            (manifest.text_encoder, manifest.clip_encoder),
            texts=manifest.inputs.texts,
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


def said_of_running() -> str:
    """What to tell whoever has just built engines: whether they have run on this machine."""
    if reason := why_not_run():
        return (
            "The engines have not run, all figures are of the ONNX files they were built from: "
            f"{reason} Where they are to run: dgl-verify BUNDLE --device cuda"
        )
    return "The engines ran on this machine's GPU and passed the self-check."


def write_engines(
    folder: Path, graphs: tuple[Graph, Graph], *, texts: TextSpec, num_frames: int, library: str
) -> list[Path]:
    """Build the engines of a text encoder and a clip encoder that lie in a folder; write both or none."""
    captions, clips = graphs
    built = [
        described_engine(
            folder / graph.file, graph.precision, (graph.inputs, graph.outputs), profiles, library
        )
        for graph, profiles in (
            (captions, caption_profiles(texts)),
            (clips, clip_profiles(clips, num_frames)),
        )
    ]
    save_engines({path: (info, engine) for path, info, engine in built})
    return [path for path, _, _ in built]


def caption_profiles(texts: TextSpec) -> tuple[Profile, ...]:
    """One query at a time, and up to 64 captions; any length the tokenizer makes."""
    shortest, longest = max(1, texts.special_tokens), texts.max_tokens
    if texts.pad_to is not None:
        shortest = longest = texts.pad_to
    usual = max(shortest, min(USUAL, longest))
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
