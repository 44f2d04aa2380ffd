"""Manifests: what one says, what schema 2 said, and what is refused."""

import json

import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.input_spec import InputSpec, clip_frames, clip_texts
from dgl_runtime.bundle.manifest import Manifest
from dgl_runtime.errors import BundleError
from tests.helpers.old_files import unpack
from tests.helpers.specs import text_spec

FRAMES, TEXTS, SCALE = ("inputs", "frames"), ("inputs", "texts"), ("source", "logit_scale")
MEASURED = (
    *("min_cosine", "mean_cosine", "top1_agreement"),
    *("recall_at_1_before", "recall_at_1_after", "num_captions", "num_clips"),
)


@pytest.fixture
def values(bundle):
    """What manifest.json holds, to change."""
    return json.loads((bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def old_text(tmp_path_factory):
    """A manifest of schema 2, as text."""
    return (unpack(tmp_path_factory.mktemp("old")) / "bundle" / "manifest.json").read_text()


@pytest.fixture
def write(tmp_path):
    """Write a manifest.json, and give the folder it lies in."""

    def write(text):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "manifest.json").write_bytes(content)
        return tmp_path

    return write


def test_a_manifest_that_is_written_and_read_is_the_same(bundle, values):
    manifest = Bundle(bundle).manifest
    text = manifest.to_json()
    assert Manifest.from_json(text, bundle) == manifest
    assert text == (bundle / "manifest.json").read_text()
    assert json.loads(text) == values


def test_a_manifest_names_what_a_runtime_has_to_know(bundle):
    manifest = Bundle(bundle).manifest
    assert (manifest.source.method, manifest.embed_dim) == ("dgl-linear", 32)
    assert (manifest.inputs.frames.num_frames, manifest.inputs.frames.size) == (4, 32)
    assert manifest.inputs.texts == text_spec(32)
    assert set(manifest.files) == {path.name for path in bundle.iterdir()} - {"manifest.json"}
    assert manifest.clip_encoder.inputs[0].shape == ("batch", "frames", 3, 32, 32)
    assert manifest.parity.max_abs < 1e-5
    assert manifest.parity.rank_agreement == 1


def test_schema_2_is_read_as_clips(old_text, tmp_path):
    manifest, values = Manifest.from_json(old_text, tmp_path), json.loads(old_text)
    frames = clip_frames(2, 16, tuple(values["mean"]), tuple(values["std"]))
    assert manifest.inputs == InputSpec(frames, clip_texts(24))
    for name in ("method", "backbone", "backbone_sha256", "logit_scale"):
        assert getattr(manifest.source, name) == values[name]
    assert manifest.source.checkpoint_sha256 == values["source"]["checkpoint_sha256"]
    assert (manifest.schema_version, manifest.files) == (2, values["files"])
    assert json.loads(manifest.to_json())["schema_version"] == 3  # what is written is of today
    assert Manifest.from_json(manifest.to_json(), tmp_path).inputs == manifest.inputs


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sampling", "random", "sampling is 'random', known are centers"),
        ("max_words", 2, "max_tokens is 2, it must be 3 or more"),
        ("frame_size", "16", "size is '16'"),
        ("mean", 0.5, "'float' object is not iterable"),
        ("source", None, "'NoneType' object is not a mapping"),
        ("colour", "red", ".*'colour'"),
    ],
)
def test_what_schema_2_cannot_say_is_refused(old_text, write, name, value, message):
    values = json.loads(old_text)
    with pytest.raises(BundleError, match=f"does not fit schema_version 2: {message}"):
        Bundle(write(json.dumps({**values, name: value})))
    values.pop(name, None)
    if name != "colour":
        with pytest.raises(BundleError, match=f"does not fit schema_version 2: '{name}'"):
            Bundle(write(json.dumps(values)))


@pytest.mark.parametrize("version", [0, 1, 4, "2", None, [2], 1e9])
def test_an_unknown_schema_version_is_named_first(write, values, version):
    del values["inputs"]  # another version may lack fields: the version is what counts
    folder = write(json.dumps({**values, "schema_version": version}))
    with pytest.raises(
        BundleError, match=r"has schema_version .*, this version reads 2 and 3\. Export"
    ):
        Bundle(folder)


LATER = ("frame_wise", "licence")  # fields that the first bundles of this schema lack


@pytest.mark.parametrize(("where", "name"), [((), "frame_wise"), (("source",), "licence")])
def test_a_bundle_without_a_later_field_is_read(write, values, where, name):
    part = values
    for key in where:
        part = part[key]
    del part[name]
    assert Bundle(write(json.dumps(values))).manifest.source.licence == "unknown"


@pytest.mark.parametrize(
    "where",
    [
        *((), ("text_encoder",), ("clip_encoder", "inputs", 0), ("parity",), ("source",)),
        *(("inputs",), ("inputs", "frames"), ("inputs", "texts")),
    ],
)
def test_a_missing_and_an_unknown_field_are_named(write, values, where):
    part = values
    for key in where:
        part = part[key]
    for name in [name for name in part if name not in ("schema_version", *LATER)]:
        kept = part.pop(name)
        with pytest.raises(BundleError, match=rf"does not fit schema_version 3: .*'{name}'"):
            Bundle(write(json.dumps(values)))
        part[name] = kept
    part["colour"] = "red"
    with pytest.raises(BundleError, match=r"does not fit schema_version 3: .*'colour'"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", None),
        ("files", ["clip_encoder.onnx"]),
        ("inputs", None),
        ("inputs", {"frames": [], "texts": {}}),
        ("embed_dim", 32.5),
        ("text_encoder", []),
        ("clip_encoder", "clip_encoder.onnx"),
        ("source", None),
        ("quality", []),
        ("quality", {**dict.fromkeys(MEASURED, 1), "num_clips": 0.5}),
        ("quality", {**dict.fromkeys(MEASURED, 1), "mean_cosine": None}),
    ],
)
def test_a_field_of_another_type_is_refused(write, values, name, value):
    with pytest.raises(BundleError, match="does not fit schema_version 3") as caught:
        Bundle(write(json.dumps({**values, name: value})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("parity", "max_abs"), "0"),
        (("source", "version"), 1),
        (("source", "method"), 3),
        (("source", "logit_scale"), None),
        (("inputs", "frames", "num_frames"), "4"),
        (("inputs", "frames", "resize"), None),
        (("inputs", "texts", "pad_to"), "32"),
        (("inputs", "texts", "pad_id"), None),
        (("inputs", "texts", "end_id"), 0.5),
        (("text_encoder", "file"), None),
        (("text_encoder", "low_precision_nodes"), 0.5),
        (("clip_encoder", "inputs", 0, "dtype"), 3),
    ],
)
def test_a_field_of_another_type_inside_is_named(write, values, where, value):
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(BundleError, match=f"schema_version 3: {where[-1]} is {value!r}\\. Export"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("format",), "tflite", r"format is 'tflite', known are onnx, openvino, trt, trt-rtx"),
        (("precision",), "int4", r"precision is 'int4', known are fp32, fp16, bf16, int8, fp8"),
        (("precision",), "int8", r"text_encoder is fp32, precision is int8"),
        (("clip_encoder", "precision"), "fp16", r"clip_encoder is fp16, precision is fp32"),
        (("embed_dim",), 0, r"embed_dim is 0, it must be 1 or more"),
        (
            ("embed_dim",),
            16,
            r"text_encoder\.outputs has embedding float32 \['batch', 32\], expected",
        ),
        ((*FRAMES, "num_frames"), 0, r"num_frames is 0, it must be 1"),
        ((*FRAMES, "size"), 0, r"size is 0, it must be 1"),
        (
            (*FRAMES, "resize"),
            "stretch",
            r"resize is 'stretch', known are shortest, squash, longest",
        ),
        ((*FRAMES, "interpolation"), "box", r"interpolation is 'box', known are bicubic, bilinear"),
        ((*FRAMES, "sampling"), "random", r"sampling is 'random', known are centers"),
        ((*FRAMES, "size"), 64, r"clip_encoder\.inputs has frames .*, expected uint8 .* 3, 64, 64"),
        ((*TEXTS, "max_tokens"), 2, r"max_tokens is 2, it must be 3 or more"),
        (
            (*TEXTS, "clean"),
            "upper",
            r"clean is 'upper', known are clip, canonicalize, blip, white",
        ),
        ((*TEXTS, "read"), "mean", r"read is 'mean', known are end, first, last"),
        ((*TEXTS, "end_id"), None, r"read is 'end', but end_id is None"),
        ((*TEXTS, "pad_to"), 31, r"pad_to is 31, it must be max_tokens, 32, or more"),
        ((*TEXTS, "pad_id"), -1, r"pad_id is -1, it must be 0 or more"),
        ((*TEXTS, "start_id"), -1, r"start_id is -1, it must be 0 or more"),
        (SCALE, float("nan"), r"logit_scale is nan, it must be a positive number"),
        (SCALE, float("inf"), r"logit_scale is inf, it must be a positive number"),
        (SCALE, 0, r"logit_scale is 0, it must be a positive number"),
        (
            ("files", "clip_encoder.onnx"),
            3,
            r"files has 'clip_encoder.onnx': 3, expected the name of a file",
        ),
        (
            ("files", "../clip_encoder.onnx"),
            "0" * 64,
            r"files has '\.\./clip_encoder.onnx': '0+', expected",
        ),
        (("text_encoder", "inputs"), [], r"text_encoder\.inputs are \[\], expected \['tokens'\]"),
        (
            ("clip_encoder", "outputs", 0, "name"),
            "out",
            r"clip_encoder\.outputs are \['out', 'frame_weights'\]",
        ),
        (
            ("text_encoder", "inputs", 0, "dtype"),
            "int64",
            r"text_encoder\.inputs has tokens int64 .*, expected int32 \['batch', 'length'\]",
        ),
        (
            ("clip_encoder", "inputs", 0, "shape"),
            [1, 3, 32, 32],
            r"clip_encoder\.inputs has frames uint8 \[1, 3, 32, 32\], expected uint8 "
            r"\['batch', 'frames', 3, 32, 32\]",
        ),
        (
            ("clip_encoder", "outputs", 1, "shape"),
            [4],
            r"clip_encoder\.outputs has frame_weights float32 \[4\], expected float32 \['batch', 'frames'\]",
        ),
        (
            ("clip_encoder", "outputs", 0, "shape"),
            ["batch"],
            r"clip_encoder\.outputs has embedding float32 \['batch'\], expected float32 \['batch', 32\]",
        ),
        (
            ("clip_encoder", "inputs", 0, "shape", 0),
            None,
            r"clip_encoder\.inputs has frames uint8 \[None, 'frames', 3, 32, 32",
        ),
        (
            ("clip_encoder", "inputs", 0, "shape", 1),
            7,
            r"clip_encoder\.inputs has frames uint8 \['batch', 7, 3, 32, 32\], ex",
        ),
        (
            ("clip_encoder", "inputs", 0, "shape", 0),
            4,
            r"clip_encoder\.inputs has frames uint8 \[4, 'frames', 3",
        ),
        ((*FRAMES, "mean"), ["a", "b", "c"], r"mean is \('a', 'b', 'c'\), expected 3 numbers"),
        ((*FRAMES, "mean"), [0.5, "b", 0.5], r"mean is \(0.5, 'b', 0.5\), expected 3 numbers"),
        ((*FRAMES, "std"), [1, 2], r"std is \(1, 2\), expected 3 numbers"),
    ],
)
def test_a_value_that_no_runtime_can_work_with_is_refused(write, values, where, value, message):
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(BundleError, match=f"does not fit schema_version 3: {message}"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("clip_encoder", "inputs", 0, "shape", 1), 4),  # a graph with prompts for each frame
        (("clip_encoder", "outputs", 1, "shape", 1), 4),
        (("text_encoder", "inputs", 0, "shape"), ["a", "b"]),
        (SCALE, 1),
        (SCALE, 0.5),
        ((*FRAMES, "mean"), [0, 0.5, 1]),
        ((*TEXTS, "max_tokens"), 3),
        ((*TEXTS, "pad_to"), 32),
        ((*TEXTS, "start_id"), None),
        (("quality",), dict.fromkeys(MEASURED, 1)),
        (("quality",), {**dict.fromkeys(MEASURED, 0.5), "num_captions": 2, "num_clips": 3}),
        (("quality",), {**dict.fromkeys(MEASURED, 1), "recall_at_1_before": None}),
    ],
)
def test_a_value_that_a_runtime_can_work_with_is_read_as_it_stands(write, values, where, value):
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert json.loads(Bundle(write(json.dumps(values))).manifest.to_json()) == values


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "3", "null", '"x"', "{}", "\0", "no json"]
)
def test_what_is_no_manifest_is_refused(write, text):
    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest: .*Export the bundle"):
        Bundle(write(text))


def test_a_manifest_that_is_not_utf_8_is_refused(write):
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: .*Check the path"):
        Bundle(write(b'{"schema_version": 2, "method": "\xff"}'))
