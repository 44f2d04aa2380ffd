"""Lower precisions: what is written, what is kept, what the gate refuses, on the tiny model."""

import json

import numpy as np
import onnx
import pytest

from dgl_export import bundle_writer, quality
from dgl_export import lower_precision as lowering
from dgl_export.bundle_writer import write_bundle
from dgl_export.calibration import Calibration, Half, made_calibration
from dgl_export.formats import WRITTEN, Target
from dgl_export.request import ExportRequest
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.manifest import MIN_COSINE
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import ExportError
from tests.helpers.openvino_cpu import require_openvino
from tests.helpers.tiny import tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES, SETTINGS, make_model

FP8 = 0.98  # three bits of mantissa: random weights come out just below the gate's 0.99
LOWER = [
    (form, precision)
    for form, precisions in WRITTEN.items()
    for precision in precisions
    if precision != "fp32" and form != "trt-rtx"  # the same graphs as trt
]


@pytest.fixture(scope="module")
def request_():
    model = make_model(tiny_backbone(), "dgl-linear")
    return ExportRequest(model, "dgl-linear", NUM_FRAMES, 20, "a checkpoint", "0" * 64)


@pytest.fixture(scope="module")
def calibration(request_):
    return made_calibration(request_.inputs.frames, request_.tokenizer)


@pytest.fixture(scope="module", params=LOWER, ids=lambda pair: "-".join(pair))
def lowered(request, request_, calibration, tmp_path_factory):
    form, precision = request.param
    if form == "openvino":
        require_openvino(precision)
    out = tmp_path_factory.mktemp("lowered") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("require_builder", "rebuild"):  # engines are built in test_rebuild.py
            patch.setattr(bundle_writer, name, lambda *_: None)
        patch.setitem(MIN_COSINE, "fp8", FP8)
        patch.setitem(quality.MIN_TOP1, "fp8", 0.9)  # to random weights all clips are alike
        write_bundle(request_, out, Target(form, precision), calibration)
    return Bundle(out)


@pytest.fixture(scope="module")
def whole(request_, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "bundle"
    write_bundle(request_, out)
    return Bundle(out)


def test_the_manifest_says_what_it_costs(lowered):
    manifest = lowered.manifest
    bound = FP8 if manifest.precision == "fp8" else MIN_COSINE[manifest.precision]
    assert manifest.quality.min_cosine >= bound
    assert manifest.quality.top1_agreement >= 0.9
    assert manifest.quality.min_cosine < 1 - 1e-9, "it is not float32 that was measured"


def test_most_matrix_products_have_the_precision(lowered):
    for graph in (lowered.manifest.text_encoder, lowered.manifest.clip_encoder):
        assert graph.precision == lowered.manifest.precision
        assert graph.low_precision_nodes >= 8


def test_no_two_products_in_int8_overflow_the_16_bits_of_a_cpu_without_vnni(lowered):
    if lowered.manifest.precision != "int8":
        pytest.skip("not int8")
    for graph in (lowered.manifest.text_encoder, lowered.manifest.clip_encoder):
        path = lowered.path(graph.file)
        largest = [np.abs(one.astype(int)).max() for one in weights_in_int8(path)]
        assert len(largest) >= 8
        assert set(largest) <= {63, 64}, largest
        assert 2 * 255 * max(largest) < 2**15


def weights_in_int8(path):
    if path.suffix == ".onnx":
        tensors = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
        return [one for one in tensors if one.dtype == np.int8 and one.ndim == 2]
    import openvino

    nodes = openvino.Core().read_model(path).get_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    kept = [one for one in constants if one.get_element_type() == openvino.Type.i8]
    return [one.data for one in kept if len(one.get_output_shape(0)) == 2]


def test_the_golden_outputs_are_those_of_the_graphs(lowered):
    manifest = lowered.manifest
    if manifest.format == "openvino":
        engine = {"engine": "openvino", "precision": manifest.precision}
    elif manifest.precision == "bf16":
        pytest.skip("ONNX Runtime has no bf16 on CPUs")
    else:
        engine = {}
    captions = open_engine(
        lowered.graph_path(manifest.text_encoder), device="cpu", threads=1, **engine
    )
    ours = captions.run({"tokens": lowered.golden.tokens})["embedding"]
    assert np.abs(ours - lowered.golden.caption_embeddings).max() < 2e-3
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_what_must_stay_float32_does(lowered):
    if lowered.manifest.format == "openvino":
        pytest.skip("an OpenVINO model is no ONNX file")
    for graph in (lowered.manifest.text_encoder, lowered.manifest.clip_encoder):
        model = onnx.load(lowered.path(graph.file))
        inferred = onnx.shape_inference.infer_shapes(model).graph
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
        weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("Softmax", "LayerNormalization", "ReduceL2"):
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
            if node.op_type == "Conv":
                assert weights[node.input[1]] == onnx.TensorProto.FLOAT
        assert {output.type.tensor_type.elem_type for output in model.graph.output} == {
            onnx.TensorProto.FLOAT
        }


def test_a_lower_precision_makes_smaller_files(lowered, whole):
    def weights(bundle, graph):
        return bundle.path(getattr(bundle.manifest, graph).weights).stat().st_size

    assert weights(lowered, "clip_encoder") < 0.75 * weights(whole, "clip_encoder")
    assert weights(lowered, "text_encoder") < 0.6 * weights(
        whole, "text_encoder"
    )  # mostly its token table


def test_float32_openvino_equals_the_trained_model(request_, tmp_path):
    require_openvino("fp32")
    manifest = write_bundle(request_, tmp_path / "bundle", Target("openvino", "fp32"))
    assert manifest.parity.max_abs < 2e-6
    assert manifest.quality is None
    assert manifest.text_encoder.file == "text_encoder.xml"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_gate_that_is_missed_names_the_worst_layers_and_leaves_nothing(
    request_, calibration, tmp_path, monkeypatch, precision
):
    monkeypatch.setitem(MIN_COSINE, precision, 1.0)
    with pytest.raises(ExportError, match=r"smallest cosine .* \(at least 1.0 needed\)") as caught:
        write_bundle(request_, tmp_path / "bundle", Target("onnx", precision), calibration)
    assert "Worst layers: text_encoder.onnx " in str(caught.value)
    assert "blocks." in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_lose_most_are_kept_until_the_half_that_calibrates_is_close_enough(
    request_, calibration, tmp_path, monkeypatch
):
    before = write_bundle(request_, tmp_path / "all", Target("onnx", "int8"), calibration)
    monkeypatch.setitem(MIN_COSINE, "int8", 2 * before.quality.min_cosine - 1 + 1e-3)
    monkeypatch.setattr(quality, "require", lambda *_: None)  # whatever the other half says
    after = write_bundle(request_, tmp_path / "some", Target("onnx", "int8"), calibration)
    for now, then in (
        (after.text_encoder, before.text_encoder),
        (after.clip_encoder, before.clip_encoder),
    ):
        more_kept = len(now.kept) - len(then.kept)
        assert more_kept >= 1
        assert now.low_precision_nodes == then.low_precision_nodes - more_kept
    kept = json.loads((tmp_path / "some/manifest.json").read_text())["text_encoder"]["kept"]
    assert tuple(kept) == after.text_encoder.kept


def test_a_graph_that_stays_float32_is_refused(request_, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(lowering, "to_dynamic", lambda model, _: model)
    with pytest.raises(ExportError, match=r"text_encoder\.onnx has no node in int8 after"):
        write_bundle(request_, tmp_path / "bundle", Target("onnx", "int8"), calibration)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "method"),
    [
        *(("onnx", method) for method in SETTINGS),
        ("openvino", "dgl-transformer"),
        # The others by hand: each takes a quarter of a minute.
        *(
            pytest.param("openvino", method, marks=pytest.mark.soak)
            for method in SETTINGS
            if method != "dgl-transformer"
        ),
    ],
)
def test_int8_takes_every_method_that_folds(method, form, tmp_path, monkeypatch):
    if form == "openvino":
        require_openvino("int8")
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 0)  # to random weights all clips are alike
    bound = 0.95 if method == "lora" else 0.97  # whose random updates are larger than learned ones
    monkeypatch.setitem(MIN_COSINE, "int8", bound)
    about = (method, NUM_FRAMES, 20, "a checkpoint", "0" * 64)
    request = ExportRequest(make_model(tiny_backbone(), method), *about)
    made = made_calibration(request.inputs.frames, request.tokenizer)
    manifest = write_bundle(request, tmp_path / "bundle", Target(form, "int8"), made)
    assert manifest.quality.min_cosine >= bound


def test_halves_share_no_clip(calibration):
    assert isinstance(calibration, Calibration)
    first, second = calibration.calibrates, calibration.judges
    assert isinstance(first, Half)
    assert not any((one == other).all() for one in first.frames for other in second.frames)
    assert not any((one == other).all() for one in first.tokens.ids for other in second.tokens.ids)
