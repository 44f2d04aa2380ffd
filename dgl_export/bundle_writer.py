"""Write a bundle: fold, export, parity gate, manifest. A failed export leaves nothing."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from dgl_export.calibration import Calibration, made_calibration
from dgl_export.fold import fold
from dgl_export.formats import FLOAT32_ONNX, Target, write_graph
from dgl_export.graph_files import load_graph
from dgl_export.lower_precision import lower
from dgl_export.parity import make_golden, measure, require, require_inputs, require_numbers, rerun
from dgl_export.request import ExportRequest
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_runtime.bundle.folder import GOLDEN, MANIFEST, TOKENIZER, Bundle, sha256_of
from dgl_runtime.bundle.golden import Golden
from dgl_runtime.bundle.manifest import SCHEMA_VERSION, Graph, Manifest, Parity, Quality, Source
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.encoder.rebuild import rebuild
from dgl_runtime.engines.installed import require as require_engine
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.openvino import require_precision
from dgl_runtime.engines.tensorrt_build import require_builder
from dgl_runtime.errors import ExportError


def write_bundle(
    request: ExportRequest,
    out: Path,
    target: Target = FLOAT32_ONNX,
    calibration: Calibration | None = None,
) -> Manifest:
    """Export a model into a new folder.

    The bundle is made in a temporary folder beside ``out`` and renamed when its gates have passed.

    Args:
        request: What to export.
        out: The folder to make.
        target: Format and precision.
        calibration: For a precision below fp32; None: made captions and clips, which will not do for
            precisions that need scales.

    Raises:
        ExportError: ``out`` exists, or a gate failed.
        EngineError: The format's library is missing.
        OSError: The disk is full or cannot be written.
    """
    require_ready(out, target)
    context = request.model.longest_text
    if request.max_tokens > context:
        raise ExportError(
            f"max_tokens is {request.max_tokens}, but the backbone reads captions of {context} tokens "
            f"at most. Give --max-tokens {context} or less."
        )
    making = out.parent / f".{out.name}.{os.getpid()}"
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        making.mkdir(parents=True)
        manifest = _fill(request, making, target, calibration)
        (making / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _require_inputs_of(Bundle(making))
        if target.library is not None:
            rebuild(making, target.library)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        with suppress(OSError):  # the bundle is in them
            for folder in missing:
                folder.rmdir()
    return manifest


def require_ready(out: Path, target: Target) -> None:
    """Refuse what would fail after the minutes of exporting.

    Raises:
        ExportError: ``out`` exists.
        EngineError: The format's library is missing, or the CPU lacks the precision.
    """
    if out.exists():
        raise ExportError(f"{out} exists already. Give a new folder to --out, or delete it first.")
    if target.library is not None:
        require_builder(target.library)
    if target.form == "openvino":
        require_engine("openvino", "cpu")
        require_precision(target.precision)


def _fill(
    request: ExportRequest, folder: Path, target: Target, calibration: Calibration | None
) -> Manifest:
    golden = make_golden(request.model, request.tokenizer, request.frames)
    request.tokenizer.save(folder / TOKENIZER)
    encoders = _write_encoders(request, golden, folder, (target, calibration))
    encoders.golden.save(folder / GOLDEN)
    text_encoder, clip_encoder = encoders.graphs
    return Manifest(
        schema_version=SCHEMA_VERSION,
        format=target.form,
        precision=target.precision,
        embed_dim=request.model.embed_dim,
        inputs=request.inputs,
        text_encoder=text_encoder,
        clip_encoder=clip_encoder,
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        parity=encoders.parity,
        quality=encoders.quality,
        source=_source(request),
        frame_wise=request.model.frame_wise,
    )


def _require_inputs_of(bundle: Bundle) -> None:
    """Hold what is on disk, as a runtime reads it, against the model's golden inputs."""
    inputs = bundle.manifest.inputs
    tokenizer = Tokenizer.load(bundle.path(TOKENIZER), inputs.texts)
    require_inputs(bundle.golden, inputs.frames, tokenizer)


def _source(request: ExportRequest) -> Source:
    model = request.model
    return Source(
        method=request.method,
        backbone=model.source.name,
        backbone_sha256=model.digest(),
        logit_scale=model.logit_scale.item(),
        checkpoint=request.checkpoint,
        checkpoint_sha256=request.checkpoint_sha256,
        version=version("dgl-retrieval"),
        licence=model.licence,
    )


@dataclass(frozen=True)
class _Encoders:
    graphs: list[Graph]  # of captions and of clips
    golden: Golden  # with the outputs that these graphs give
    parity: Parity  # of these graphs to the trained model
    quality: Quality | None


def _write_encoders(
    request: ExportRequest,
    golden: Golden,
    folder: Path,
    target: tuple[Target, Calibration | None],
) -> _Encoders:
    """Float32 graphs behind the parity gate; from these the target's, if it is another."""
    form, calibration = target
    float32 = folder / "float32"
    float32.mkdir()
    graphs = _write_float32(request, golden, float32)
    engines = [open_engine(float32 / graph.file, device="cpu", threads=0) for graph in graphs]
    parity, quality = require(measure(golden, *engines)), None
    if form == FLOAT32_ONNX:
        for path in float32.iterdir():
            path.rename(folder / path.name)
    elif form.precision == "fp32":
        models = [load_graph(float32 / graph.file) for graph in graphs]
        written = [
            write_graph(*pair, form, (folder, ())) for pair in zip(models, graphs, strict=True)
        ]
        graphs = [one.graph for one in written]
        parity = require(measure(golden, *(one.engine for one in written)))
    else:
        calibration = calibration or made_calibration(request.frames, request.tokenizer)
        lowered = lower(float32, graphs, form, calibration, folder)
        lowered.require()
        quality, written = lowered.measured, lowered.written
        graphs, engines = [one.graph for one in written], [one.engine for one in written]
        parity = require_numbers(measure(golden, *engines))
        golden = rerun(golden, *engines)
    shutil.rmtree(float32)
    return _Encoders(graphs, golden, parity, quality)


def _write_float32(request: ExportRequest, golden: Golden, folder: Path) -> list[Graph]:
    folded = fold(request.model)
    tokens, frames = torch.from_numpy(golden.tokens[:2]), torch.from_numpy(golden.frames[:2])
    frames, any_length = _several(frames), request.inputs.texts.pad_to is None
    return [
        write_text_encoder(folded.text_encoder, tokens, folder, any_length=any_length),
        write_clip_encoder(folded.clip_encoder, frames, folder, any_frames=folded.any_frames),
    ]


def _several(frames: torch.Tensor) -> torch.Tensor:
    """At least two frames, so that the trace does not take their number as fixed at one."""
    return frames if frames.shape[1] > 1 else frames.repeat(1, 2, 1, 1, 1)
