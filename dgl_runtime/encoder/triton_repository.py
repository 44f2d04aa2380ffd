"""A Triton model repository of a bundle: a folder for each graph, with files, config.pbtxt and warm-up."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import GRAPHS, TEXT_ENCODER, Graph
from dgl_runtime.encoder.rebuild import CAPTION_BATCH, CLIP_BATCH
from dgl_runtime.encoder.self_check import golden_inputs, graph_of
from dgl_runtime.encoder.served import BUNDLE_ID, padded, served_name
from dgl_runtime.encoder.triton_config import Placed, Plans, WarmUp, config_text
from dgl_runtime.engines.engine_file import EngineInfo, read_engines
from dgl_runtime.engines.installed import KINDS
from dgl_runtime.errors import ExportError

_VERSION, _WARM_UP = "1", "warmup"  # Triton's names: of a model's only version, of what warms it up
_INPUT = "golden_input"


@dataclass(frozen=True)
class WrittenModel:
    """A model of a repository."""

    folder: Path
    runs_in: str  # for people


def write_repository(bundle: Bundle, out: Path, placed: Placed) -> list[WrittenModel]:
    """Add both graphs of a bundle to a repository, or none.

    For cuda, a graph of which the bundle has TensorRT engines is served as those, any other as ONNX.

    Args:
        bundle: An opened bundle.
        out: The repository's folder, made if it is new; it may hold other bundles' models.
        placed: Where the server runs them.

    Raises:
        BundleError: The bundle is damaged.
        EngineError: An engine of it is.
        ExportError: A server cannot run it there, or its models are in ``out`` already.
        OSError: The disk is full or cannot be written.
    """
    _require_servable(bundle, placed.device)
    folders = {name: out / served_name(bundle, name) for name in GRAPHS}
    for folder in folders.values():
        if folder.exists():
            raise ExportError(
                f"{folder} is there already. Remove it to write it again, or name another folder."
            )
    # Within OUT, which may be a disk of its own; a model that has no version is loaded by nobody.
    making = out / f".{os.getpid()}"
    is_new = not out.exists()
    try:
        written = []
        for name, folder in folders.items():
            runs_in = _write_model(bundle, name, making / folder.name, placed)
            written.append(WrittenModel(folder, runs_in))
        done: list[Path] = []
        try:
            for folder in folders.values():
                (making / folder.name).rename(folder)
                done.append(folder)
        except OSError:
            for folder in done:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it holds the models, if all went well
                out.rmdir()
    return written


def _require_servable(bundle: Bundle, device: str) -> None:
    manifest = bundle.manifest
    if manifest.format not in KINDS["onnx"].formats:
        raise ExportError(
            f"{bundle.folder} is of format {manifest.format}; a repository is written of "
            f"{', '.join(KINDS['onnx'].formats)}. Export the model with --format onnx."
        )
    if (device, manifest.precision) == ("cpu", "bf16"):
        raise ExportError(
            f"{bundle.folder} is bf16, which ONNX Runtime does not run on CPUs. Write the repository with "
            "--device cuda, or export the model in another precision."
        )


def _write_model(bundle: Bundle, name: str, folder: Path, placed: Placed) -> str:
    """Fill the folder of one model; returns what it runs in."""
    graph = graph_of(bundle, name)
    file = bundle.graph_path(graph)
    files = folder / _VERSION
    files.mkdir(parents=True)
    engines = read_engines(file, "tensorrt") if placed.device == "cuda" else []
    smallest, usual, most = CAPTION_BATCH if name == TEXT_ENCODER else CLIP_BATCH
    plans = None
    if engines:
        plans, most, runs_in = _plans_of(name, [info for info, _ in engines])
        for (_, engine), path in zip(engines, plans.files.values(), strict=True):
            (files / path).write_bytes(engine)
    else:
        runs_in = f"ONNX Runtime on {placed.device}"
        for one in {graph.file, graph.weights}:
            shutil.copyfile(bundle.folder / one, files / one)
    shape = _write_warm_up(bundle, name, folder / _WARM_UP)
    text = config_text(
        folder.name,
        graph,
        plans=plans,
        placed=placed,
        most=most,
        warm_up=WarmUp(_INPUT, shape, (smallest, min(usual, most))),
        parameters=_parameters(bundle, graph),
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    return runs_in


def _plans_of(name: str, engines: list[EngineInfo]) -> tuple[Plans, int, str]:
    """The engines of a graph, their largest batch, and a line about them.

    Raises:
        ExportError: One server could not run them all.
    """
    versions = sorted({one.library_version for one in engines})
    if len(versions) > 1:
        raise ExportError(
            f"the bundle has engines of {name} for TensorRT {' and '.join(versions)}; a server has one of "
            "them. Move the others out of the bundle's folder engines."
        )
    files: dict[str, str] = {}
    for one in engines:
        if one.compute_capability in files:
            raise ExportError(
                f"the bundle has several engines of {name} for compute capability "
                f"{one.compute_capability}, of which a server holds one. Move the others out of the "
                "bundle's folder engines."
            )
        files[one.compute_capability] = f"sm{one.compute_capability.replace('.', '')}.plan"
    # Of several profiles the widest: every batch that the server joins fits in it.
    widest = [max(enumerate(one.profiles), key=lambda pair: pair[1].maximum[0]) for one in engines]
    profiles = {number for number, _ in widest}
    if len(profiles) > 1:
        raise ExportError(
            f"the engines of {name} have different profiles. Build them again with one version: "
            "dgl-bundle rebuild"
        )
    most = min(profile.maximum[0] for _, profile in widest)
    gpus = " and ".join(sorted({one.gpu for one in engines}))
    told = f"TensorRT {versions[0]}, which the server must have, on {gpus}"
    return Plans(files, profiles.pop()), most, told


def _write_warm_up(bundle: Bundle, name: str, folder: Path) -> tuple[int, ...]:
    """Write the first golden input; returns its shape, without the batch."""
    ((_, array),) = golden_inputs(bundle, name).items()
    one = array[:1]
    if name == TEXT_ENCODER:
        one = padded(one, bundle.manifest.inputs.texts)
    folder.mkdir()
    (folder / _INPUT).write_bytes(one.tobytes())
    return one.shape[1:]


def _parameters(bundle: Bundle, graph: Graph) -> dict[str, str]:
    """What a client may ask the server about a model."""
    inputs = json.dumps(asdict(bundle.manifest.inputs))
    return {BUNDLE_ID: bundle.id, "input_spec": inputs, "precision": graph.precision}
