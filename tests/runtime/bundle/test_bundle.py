import json
import shutil
from unittest import mock

import numpy as np
import pytest

from dgl_runtime.bundle.folder import TOKENIZER, Bundle, sha256_of
from dgl_runtime.bundle.manifest import Manifest
from dgl_runtime.errors import BundleError
from tests.helpers.changed_bundles import changed_bundle

FILES = (
    "caption.onnx",
    "caption.onnx.data",
    "clip.onnx",
    "clip.onnx.data",
    "golden.npz",
    "tokenizer.json",
)

MEASURED = (
    *("min_cosine", "mean_cosine", "top1_agreement"),
    *("recall_at_1_before", "recall_at_1_after", "num_captions", "num_clips"),
)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture
def values(bundle):
    """What manifest.json holds, to change."""
    return json.loads((bundle / "manifest.json").read_text())


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
    assert (manifest.method, manifest.embed_dim, manifest.num_frames) == ("dgl-linear", 32, 4)
    assert (manifest.frame_size, manifest.max_words) == (32, 32)
    assert set(manifest.files) == set(FILES)
    assert manifest.clips.inputs[0].shape == ("batch", "frames", 3, 32, 32)
    assert manifest.parity.max_abs < 1e-5
    assert manifest.parity.rank_agreement == 1


def test_the_id_tells_bundles_apart_and_copies_not(bundle, other_bundle, copy):
    assert Bundle(copy).id == Bundle(bundle).id
    assert Bundle(other_bundle).id != Bundle(bundle).id
    assert Bundle(bundle).id == sha256_of(bundle / "manifest.json")[:16]  # as galleries keep it


def test_every_file_of_a_whole_bundle_is_given(bundle):
    opened = Bundle(str(bundle))
    for name in opened.manifest.files:
        assert opened.path(name) == bundle / name
    for graph in (opened.manifest.captions, opened.manifest.clips):
        assert opened.graph_path(graph) == bundle / graph.file
    assert opened.path(TOKENIZER).is_file()
    assert opened.golden.frames.dtype == np.uint8
    assert len(opened.golden.tokens) == len(opened.golden.caption_embeddings)


def test_a_file_is_hashed_when_it_is_first_used_and_no_more(bundle):
    opened = Bundle(bundle)
    with mock.patch("dgl_runtime.bundle.folder.sha256_of", wraps=sha256_of) as hashed:
        for _ in range(2):
            opened.graph_path(opened.manifest.clips)
            assert opened.golden is opened.golden
    used = [call.args[0].name for call in hashed.mock_calls]
    assert used == ["clip.onnx.data", "clip.onnx", "golden.npz"]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_names_the_file_and_both_hashes(copy, name, place):
    content = bytearray((copy / name).read_bytes())
    before = sha256_of(copy / name)
    content[int(place * (len(content) - 1))] ^= 1
    (copy / name).write_bytes(content)
    after = sha256_of(copy / name)
    with pytest.raises(BundleError) as caught:
        Bundle(copy).path(name)
    assert str(caught.value) == (
        f"{copy / name} has sha256 {after[:12]}, its manifest says {before[:12]}: the file was "
        "damaged or changed. Copy the bundle again, or export it again."
    )


@pytest.mark.parametrize("name", ["clip.onnx", "clip.onnx.data"])
def test_a_graph_is_refused_with_its_weights(copy, name):
    (copy / name).write_bytes(b"short")
    opened = Bundle(copy)
    with pytest.raises(BundleError, match=rf"{name} has sha256"):
        opened.graph_path(opened.manifest.clips)
    opened.graph_path(opened.manifest.captions)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_golden_inputs_that_are_none_are_the_bundles_fault(copy, values, content):
    (copy / "golden.npz").write_bytes(content)
    values["files"]["golden.npz"] = sha256_of(copy / "golden.npz")
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"golden\.npz does not hold the golden inputs: .*Export"):
        Bundle(copy).golden  # noqa: B018


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokens", lambda array: array.ravel(), r"tokens is int32 \[\d+\]"),
        (
            "frames",
            lambda array: array[:, :3],
            r"frames is uint8 .*, expected uint8 \[\d, 4, 3, 32",
        ),
        (
            "caption_embeddings",
            lambda array: array[:, :7],
            r"caption_embeddings is float32 \[\d+, 7",
        ),
        ("clip_embeddings", lambda array: array[:0], r"clip_embeddings is float32 \[0, 32\]"),
        ("frame_weights", lambda array: array.astype(float), "frame_weights is float64"),
    ],
)
def test_golden_inputs_that_do_not_fit_are_the_bundles_fault(
    bundle, tmp_path, name, change, message
):
    def spoil(golden):
        golden[name] = change(golden[name])

    folder = changed_bundle(bundle, tmp_path / "copy", golden=spoil)
    with pytest.raises(BundleError, match=f"does not hold the golden inputs: {message}"):
        Bundle(folder).golden  # noqa: B018


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("tokens", "caption_embeddings"), "tokens is int32 "),
        (("frames", "clip_embeddings", "frame_weights"), "frames is uint8 "),
    ],
)
def test_golden_inputs_without_captions_or_clips_check_nothing_and_are_refused(
    bundle, tmp_path, names, first
):
    def empty(golden):
        golden.update({name: golden[name][:0] for name in names})

    folder = changed_bundle(bundle, tmp_path / "copy", golden=empty)
    with pytest.raises(BundleError, match=rf"does not hold the golden inputs: {first}\[0, "):
        Bundle(folder).golden  # noqa: B018


def test_the_golden_inputs_are_checked_before_they_are_read(copy):
    (copy / "golden.npz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match=r"golden.npz has sha256"):
        Bundle(copy).golden  # noqa: B018


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"has no file {name}\. Export it again\."):
        Bundle(copy).path(name)


def test_a_file_the_manifest_does_not_name_is_not_given(copy):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"has no file extra\.bin"):
        Bundle(copy).path("extra.bin")


# ---- manifests that are none -----------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, "2", None, [2], 1e9])
def test_an_unknown_schema_version_is_named_first(write, values, version):
    del values["method"]  # another version may lack fields: the version is what counts
    folder = write(json.dumps({**values, "schema_version": version}))
    with pytest.raises(BundleError, match=r"has schema_version .*, this version reads 2\. Export"):
        Bundle(folder)


@pytest.mark.parametrize("where", [(), ("captions",), ("clips", "inputs", 0), ("parity",)])
def test_a_missing_and_an_unknown_field_are_named(write, values, where):
    part = values
    for key in where:
        part = part[key]
    for name in [name for name in part if name != "schema_version"]:
        kept = part.pop(name)
        with pytest.raises(BundleError, match=rf"does not fit schema_version 2: .*'{name}'"):
            Bundle(write(json.dumps(values)))
        part[name] = kept
    part["colour"] = "red"
    with pytest.raises(BundleError, match=r"does not fit schema_version 2: .*'colour'"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", None),
        ("files", ["clip.onnx"]),
        ("num_frames", "4"),
        ("embed_dim", 32.5),
        ("mean", 0.5),
        ("captions", []),
        ("clips", "clip.onnx"),
        ("source", None),
        ("logit_scale", None),
        ("method", 3),
        ("quality", []),
        ("quality", {**dict.fromkeys(MEASURED, 1), "num_clips": 0.5}),
        ("quality", {**dict.fromkeys(MEASURED, 1), "mean_cosine": None}),
    ],
)
def test_a_field_of_another_type_is_refused(write, values, name, value):
    with pytest.raises(BundleError, match="does not fit schema_version 2") as caught:
        Bundle(write(json.dumps({**values, name: value})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("parity", "max_abs"), "0"),
        (("source", "version"), 1),
        (("captions", "file"), None),
        (("captions", "low_precision_nodes"), 0.5),
        (("clips", "inputs", 0, "dtype"), 3),
    ],
)
def test_a_field_of_another_type_inside_is_named(write, values, where, value):
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(BundleError, match=f"schema_version 2: {where[-1]} is {value!r}\\. Export"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("format",), "tflite", r"format is 'tflite', known are onnx, openvino, trt, trt-rtx"),
        (("precision",), "int4", r"precision is 'int4', known are fp32, fp16, bf16, int8, fp8"),
        (("precision",), "int8", r"captions is fp32, precision is int8"),
        (("clips", "precision"), "fp16", r"clips is fp16, precision is fp32"),
        (("embed_dim",), 0, r"embed_dim is 0, it must be 1 or more"),
        (("embed_dim",), 16, r"captions\.outputs has embedding float32 \['batch', 32\], expected"),
        (("num_frames",), 0, r"num_frames is 0, it must be 1"),
        (("frame_size",), 0, r"frame_size is 0, it must be 1"),
        (("frame_size",), 64, r"clips\.inputs has frames .*, expected uint8 .* 3, 64, 64"),
        (("max_words",), 2, r"max_words is 2, it must be 3 or more"),
        (("logit_scale",), float("nan"), r"logit_scale is nan, it must be a positive number"),
        (("logit_scale",), float("inf"), r"logit_scale is inf, it must be a positive number"),
        (("logit_scale",), 0, r"logit_scale is 0, it must be a positive number"),
        (("files", "clip.onnx"), 3, r"files has 'clip.onnx': 3, expected the name of a file"),
        (("files", "../clip.onnx"), "0" * 64, r"files has '\.\./clip.onnx': '0+', expected"),
        (("captions", "inputs"), [], r"captions\.inputs are \[\], expected \['tokens'\]"),
        (("clips", "outputs", 0, "name"), "out", r"clips\.outputs are \['out', 'frame_weights'\]"),
        (
            ("captions", "inputs", 0, "dtype"),
            "int64",
            r"captions\.inputs has tokens int64 .*, expected int32 \['batch', 'length'\]",
        ),
        (
            ("clips", "inputs", 0, "shape"),
            [1, 3, 32, 32],
            r"clips\.inputs has frames uint8 \[1, 3, 32, 32\], expected uint8 "
            r"\['batch', 'frames', 3, 32, 32\]",
        ),
        (
            ("clips", "outputs", 1, "shape"),
            [4],
            r"clips\.outputs has frame_weights float32 \[4\], expected float32 \['batch', 'frames'\]",
        ),
        (
            ("clips", "outputs", 0, "shape"),
            ["batch"],
            r"clips\.outputs has embedding float32 \['batch'\], expected float32 \['batch', 32\]",
        ),
        (
            ("clips", "inputs", 0, "shape", 0),
            None,
            r"clips\.inputs has frames uint8 \[None, 'frames', 3, 32, 32",
        ),
        (
            ("clips", "inputs", 0, "shape", 1),
            7,
            r"clips\.inputs has frames uint8 \['batch', 7, 3, 32, 32\], ex",
        ),
        (("clips", "inputs", 0, "shape", 0), 4, r"clips\.inputs has frames uint8 \[4, 'frames', 3"),
        (("mean",), ["a", "b", "c"], r"mean is \('a', 'b', 'c'\), expected 3 numbers"),
        (("mean",), [0.5, "b", 0.5], r"mean is \(0.5, 'b', 0.5\), expected 3 numbers"),
        (("std",), [1, 2], r"std is \(1, 2\), expected 3 numbers"),
    ],
)
def test_a_value_that_no_runtime_can_work_with_is_refused(write, values, where, value, message):
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(BundleError, match=f"does not fit schema_version 2: {message}"):
        Bundle(write(json.dumps(values)))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("clips", "inputs", 0, "shape", 1), 4),  # a graph with prompts for each frame
        (("clips", "outputs", 1, "shape", 1), 4),
        (("captions", "inputs", 0, "shape"), ["a", "b"]),
        (("logit_scale",), 1),
        (("logit_scale",), 0.5),
        (("mean",), [0, 0.5, 1]),
        (("max_words",), 3),
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


@pytest.mark.parametrize("name", ["missing", "file", "empty", "folder"])
def test_what_is_no_bundle_folder_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "manifest.json").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(
        BundleError, match=rf"{name} is not a bundle: it has no manifest\.json\. Give"
    ):
        Bundle(tmp_path / name)


def test_a_folder_that_cannot_be_looked_into_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: .*Check the path"):
        Bundle(tmp_path / ("n" * 300))
