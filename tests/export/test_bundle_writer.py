"""Writing a bundle: the gate, what the graphs look like, and that a failed export leaves nothing."""

import json
import re
import resource
import shutil
import signal
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dgl_export import bundle_writer, quality
from dgl_export import lower_precision as lowering
from dgl_export.bundle_writer import require_ready, write_bundle
from dgl_export.calibration import made_calibration
from dgl_export.formats import Target
from dgl_export.request import ExportRequest
from dgl_runtime import Retriever
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.input_spec import InputSpec, clip_frames, clip_texts
from dgl_runtime.bundle.manifest import Manifest
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import ExportError
from tests.helpers.spoiled_graphs import add_to_output
from tests.helpers.tiny import tiny_backbone
from tests.helpers.tiny_models import BOUND_TO_FRAMES, NUM_FRAMES, make_model

EXPORTED = ("dgl-linear", "dgl-transformer", "zero-shot", "frame positions", "no global prompts")


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request):
    """Fewer than fold.py knows: those with graphs that differ from each other."""
    return request.param


def request_for(model, method):
    return ExportRequest(model, method, NUM_FRAMES, 20, "a checkpoint", "0" * 64)


@pytest.fixture(scope="module")
def bundle(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / exported
    write_bundle(request_for(make_model(tiny_backbone(), exported), exported), out)
    return Bundle(out)


def test_the_runtime_reproduces_the_trained_model(bundle):
    check = Retriever(bundle.folder).check()
    assert max(check.captions_max_abs, check.clips_max_abs) < 2e-6
    assert bundle.manifest.parity.max_abs < 2e-6
    assert bundle.manifest.parity.rank_agreement == 1


def test_the_manifest_says_what_was_exported(bundle, exported):
    backbone, manifest = tiny_backbone(), bundle.manifest
    assert (manifest.format, manifest.precision, manifest.quality) == ("onnx", "fp32", None)
    assert manifest.embed_dim == 32
    frames, source = manifest.inputs.frames, manifest.source
    assert frames.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # CLIP's
    assert frames.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert frames == clip_frames(NUM_FRAMES, 16, frames.mean, frames.std)
    assert manifest.inputs.texts == clip_texts(20)
    assert (source.method, source.backbone) == (exported, "tiny")
    assert source.backbone_sha256 == backbone.digest()
    assert source.logit_scale == pytest.approx(float(backbone.logit_scale.exp()))
    assert (source.checkpoint, source.checkpoint_sha256) == ("a checkpoint", "0" * 64)
    for name, digest in manifest.files.items():
        assert digest == sha256((bundle.folder / name).read_bytes()).hexdigest()
    assert [graph.file for graph in (manifest.text_encoder, manifest.clip_encoder)] == [
        "text_encoder.onnx",
        "clip_encoder.onnx",
    ]


def test_graphs_are_free_where_the_method_is(bundle, exported):
    frames = NUM_FRAMES if exported in BOUND_TO_FRAMES else "frames"
    assert bundle.manifest.clip_encoder.inputs[0].shape[:2] == ("batch", frames)
    assert bundle.manifest.text_encoder.inputs[0].shape == ("batch", "length")
    assert bundle.manifest.clip_encoder.inputs[0].dtype == "uint8"
    assert {file.name for file in bundle.folder.iterdir()} == {
        *bundle.manifest.files,
        "manifest.json",
    }


def test_graphs_tell_nothing_of_the_machine_that_made_them(bundle):
    for graph in (bundle.manifest.text_encoder, bundle.manifest.clip_encoder):
        assert b".py" not in bundle.path(graph.file).read_bytes()


def test_onnx_runtime_fuses_what_it_should(bundle, tmp_path):
    """Attention stays as two matrix products with the scale inside, see docs/decisions.md."""
    import onnxruntime as ort

    for graph in (bundle.manifest.text_encoder, bundle.manifest.clip_encoder):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / graph.file)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        ort.InferenceSession(
            str(bundle.graph_path(graph)), options, providers=["CPUExecutionProvider"]
        )
        nodes = onnx.load(tmp_path / graph.file, load_external_data=False).graph.node
        count = Counter(node.op_type for node in nodes)
        blocks = 2
        assert count["QuickGelu"] == blocks
        assert count["Sigmoid"] == 0
        assert count["Gemm"] == 6 * blocks  # q, k, v, out, fc, proj: bias inside
        assert count["Gelu"] == count["Erf"] == 0


class OtherInputs(ExportRequest):
    """A request that would write another resize than the model's."""

    @property
    def inputs(self):
        return InputSpec(replace(self.frames, resize="squash"), self.tokenizer.spec)


def test_a_bundle_that_resizes_unlike_the_model_is_not_written(backbone, tmp_path):
    request = request_for(make_model(backbone, "zero-shot"), "zero-shot")
    with pytest.raises(
        ExportError, match=r"parity gate: .* resize is 'squash', the model's is 'sho"
    ):
        write_bundle(OtherInputs(**vars(request)), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("frames", "resize", "squash"),
        ("frames", "interpolation", "bilinear"),
        ("frames", "mean", (0.5, 0.5, 0.5)),
        ("texts", "clean", "canonicalize"),
        ("texts", "pad_id", 1),
        ("texts", "end_id", 5),
        ("texts", "read", "last"),
    ],
)
def test_what_is_on_disk_has_to_be_the_model_s(
    backbone, spoil, tmp_path, monkeypatch, part, name, value
):
    spoil("clip_encoder.onnx", "embedding", 0.0)
    real = Manifest.to_json

    def to_json(manifest):
        inputs = manifest.inputs
        inputs = replace(inputs, **{part: replace(getattr(inputs, part), **{name: value})})
        return real(replace(manifest, inputs=inputs))

    monkeypatch.setattr(Manifest, "to_json", to_json)
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    told = rf"^parity gate: .*{name} is {re.escape(repr(value))}, the model's is .* Nothing was written"
    with pytest.raises(ExportError, match=told):
        write_bundle(request, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_on_disk_has_to_be_the_model_s(backbone, spoil, tmp_path, monkeypatch):
    spoil("clip_encoder.onnx", "embedding", 0.0)
    real = Tokenizer.save

    def save(tokenizer, path):
        real(tokenizer, path)
        told = json.loads(path.read_text())
        del told["model"]["merges"][:50]
        path.write_text(json.dumps(told))

    monkeypatch.setattr(Tokenizer, "save", save)
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    with pytest.raises(ExportError, match=r"^parity gate: .* tokenizer\.json is another one"):
        write_bundle(request, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_does_not_pass_the_gate(backbone, tmp_path, monkeypatch):
    model = make_model(backbone, "dgl-linear")

    def wrong_fold(model, **settings):
        folded = original(model, **settings)
        folded.clip_encoder.read.projection[:, 0] *= 1.01
        return folded

    original = bundle_writer.fold
    monkeypatch.setattr(bundle_writer, "fold", wrong_fold)
    with pytest.raises(
        ExportError, match=r"parity gate: exported embeddings differ by .*e-0[2345]"
    ):
        write_bundle(request_for(model, "dgl-linear"), tmp_path / "new" / "folders" / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1_000, 1_000_000, 5_000_000])
def test_a_full_disk_leaves_nothing(backbone, tmp_path, limit):
    """No file may grow past the limit: golden inputs, tokenizer or weights are the first to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        request = request_for(make_model(backbone, "zero-shot"), "zero-shot")
        with pytest.raises(OSError, match="File too large"):
            write_bundle(request, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_captions_longer_than_the_backbone_reads_are_refused(backbone, tmp_path):
    request = replace(request_for(make_model(backbone, "zero-shot"), "zero-shot"), max_tokens=25)
    with pytest.raises(ExportError, match=r"max_tokens is 25, .* captions of 24 tokens"):
        write_bundle(request, tmp_path / "bundle")


def test_an_existing_folder_is_kept(backbone, tmp_path):
    with pytest.raises(ExportError, match="exists already"):
        write_bundle(request_for(make_model(backbone, "zero-shot"), "zero-shot"), tmp_path)


@pytest.fixture
def spoil(float32, monkeypatch):
    """What comes of the tiny model's float32 graphs when a number is added to an output of one."""

    def use(file, output, number):
        def write(request, golden, folder):
            for path in float32[0].iterdir():
                shutil.copy(path, folder)
            add_to_output(folder / file, output, number)
            return float32[1]

        monkeypatch.setattr(bundle_writer, "_write_float32", write)

    return use


@pytest.mark.parametrize(
    ("file", "output"),
    [
        ("text_encoder.onnx", "embedding"),
        ("clip_encoder.onnx", "embedding"),
        ("clip_encoder.onnx", "frame_weights"),
    ],
)
@pytest.mark.parametrize(("number", "told"), [(5e-5, "differ by 5.*e-05"), (np.nan, "nan")])
def test_no_bundle_comes_of_graphs_that_give_other_numbers_or_none(
    backbone, spoil, tmp_path, file, output, number, told
):
    spoil(file, output, number)
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    with pytest.raises(ExportError, match=rf"^parity gate: exported embeddings .*{told}"):
        write_bundle(request, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["token_embedding", "positions", "captions", "globals"])
def test_a_model_that_holds_what_is_no_number_is_refused(backbone, tmp_path, path):
    """Even where no golden input would meet it, such as the row of a word that none holds."""
    model = make_model(tiny_backbone(), "dgl-linear")
    name = next(name for name in model.state_dict() if path.removesuffix("s") in name)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = torch.inf if path == "globals" else torch.nan
    told = rf"the model's {name} holds 1 NaN or infinite numbers of \d+; none may be\."
    with pytest.raises(ExportError, match=told):
        write_bundle(request_for(model, "dgl-linear"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_openvino_in_float32_has_to_pass_the_gate_itself(backbone, spoil, tmp_path, monkeypatch):
    """A conversion that stores weights in 16 bits, as OpenVINO's does unless it is told not to."""
    openvino = pytest.importorskip("openvino")
    spoil("clip_encoder.onnx", "embedding", 0.0)
    real = openvino.save_model
    monkeypatch.setattr(openvino, "save_model", lambda model, path, **_: real(model, path))
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    with pytest.raises(ExportError, match="parity gate: exported embeddings differ by"):
        write_bundle(request, tmp_path / "bundle", Target("openvino", "fp32"))
    assert list(tmp_path.iterdir()) == []


def test_a_lower_precision_that_gives_no_number_for_any_golden_input_is_refused(
    backbone, spoil, tmp_path, monkeypatch
):
    """Here for long captions alone, of which the captions that judge have none."""
    spoil("clip_encoder.onnx", "embedding", 0.0)
    real = lowering.to_dynamic

    def no_number_far_from_the_start(model, keep):
        for tensor in model.graph.initializer:
            if tensor.name == "positions" and tensor.dims[0] == 23:
                positions = numpy_helper.to_array(tensor).copy()
                positions[18] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(positions, tensor.name))
        return real(model, keep)

    monkeypatch.setattr(lowering, "to_dynamic", no_number_far_from_the_start)
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 0)  # to random weights all clips are alike
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    with pytest.raises(ExportError, match="golden inputs differs from the trained model's by nan"):
        write_bundle(
            request,
            tmp_path / "bundle",
            Target("onnx", "int8"),
            made_calibration(request.inputs.frames, request.tokenizer),
        )
    assert list(tmp_path.iterdir()) == []


def test_one_frame_is_exported_free_as_several_are(backbone, tmp_path):
    request = replace(request_for(make_model(backbone, "zero-shot"), "zero-shot"), num_frames=1)
    manifest = write_bundle(request, tmp_path / "bundle")
    assert manifest.clip_encoder.inputs[0].shape[:2] == ("batch", "frames")
    assert Bundle(tmp_path / "bundle").golden.frames.shape[1] == 1


def test_captions_may_be_as_long_as_the_backbone_reads(backbone, spoil, tmp_path):
    spoil("clip_encoder.onnx", "embedding", 0.0)
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    manifest = write_bundle(replace(request, max_tokens=24), tmp_path / "bundle")
    longest = Bundle(tmp_path / "bundle").golden.tokens.shape[1]
    assert manifest.inputs.texts.max_tokens == longest == 24


def test_what_openvino_needs_is_asked_for_before_the_export(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bundle_writer, "require_engine", lambda *given: asked.append(given))
    monkeypatch.setattr(bundle_writer, "require_precision", asked.append)
    require_ready(tmp_path / "new", Target("onnx", "fp32"))
    assert asked == []
    require_ready(tmp_path / "new", Target("openvino", "int8"))
    assert asked == [("openvino", "cpu"), "int8"]


def test_a_lower_precision_is_calibrated_with_what_is_given_or_with_what_is_made(
    backbone, spoil, tmp_path, monkeypatch
):
    spoil("clip_encoder.onnx", "embedding", 0.0)
    used = []

    def lower(folder, graphs, target, calibration, out):
        used.append(calibration)
        raise InterruptedError

    monkeypatch.setattr(bundle_writer, "lower", lower)
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    given = made_calibration(request.frames, request.tokenizer)
    for calibration in (given, None):
        with pytest.raises(InterruptedError):
            write_bundle(request, tmp_path / "bundle", Target("onnx", "int8"), calibration)
    assert used[0] is given
    assert used[1] is not given
    np.testing.assert_array_equal(used[1].judges.frames, given.judges.frames)


def test_engines_are_built_in_the_finished_folder_before_it_takes_its_name(
    backbone, spoil, tmp_path, monkeypatch
):
    spoil("clip_encoder.onnx", "embedding", 0.0)
    built = []

    def rebuild(folder, library):
        built.append((library, Bundle(folder).manifest.format, (tmp_path / "bundle").exists()))

    monkeypatch.setattr(bundle_writer, "require_builder", lambda library: None)
    monkeypatch.setattr(bundle_writer, "rebuild", rebuild)
    monkeypatch.setattr(quality, "MIN_TOP1", {"fp16": 0})  # to random weights all clips are alike
    request = request_for(make_model(backbone, "dgl-linear"), "dgl-linear")
    write_bundle(request, tmp_path / "bundle", Target("trt", "fp16"))
    assert built == [("tensorrt", "trt", False)]
