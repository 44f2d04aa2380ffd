import json
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from dgl_runtime.bundle.folder import TOKENIZER, Bundle, sha256_of
from dgl_runtime.errors import BundleError
from tests.helpers.changed_bundles import changed_bundle
from tests.helpers.old_files import unpack

FILES = (
    "text_encoder.onnx",
    "text_encoder.onnx.data",
    "clip_encoder.onnx",
    "clip_encoder.onnx.data",
    "golden.npz",
    "tokenizer.json",
)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture
def values(bundle):
    """What manifest.json holds, to change."""
    return json.loads((bundle / "manifest.json").read_text())


def test_the_id_tells_bundles_apart_and_copies_not(bundle, other_bundle, copy):
    assert Bundle(copy).id == Bundle(bundle).id
    assert Bundle(other_bundle).id != Bundle(bundle).id
    assert Bundle(bundle).id == sha256_of(bundle / "manifest.json")[:16]  # as galleries keep it


def test_every_file_of_a_whole_bundle_is_given(bundle):
    opened = Bundle(str(bundle))
    for name in opened.manifest.files:
        assert opened.path(name) == bundle / name
    for graph in (opened.manifest.text_encoder, opened.manifest.clip_encoder):
        assert opened.graph_path(graph) == bundle / graph.file
    assert opened.path(TOKENIZER).is_file()
    assert opened.golden.frames.dtype == np.uint8
    assert len(opened.golden.tokens) == len(opened.golden.caption_embeddings)


def test_a_file_is_hashed_when_it_is_first_used_and_no_more(bundle):
    opened = Bundle(bundle)
    with mock.patch("dgl_runtime.bundle.folder.sha256_of", wraps=sha256_of) as hashed:
        for _ in range(2):
            opened.graph_path(opened.manifest.clip_encoder)
            assert opened.golden is opened.golden
    used = [call.args[0].name for call in hashed.mock_calls]
    assert used == ["clip_encoder.onnx.data", "clip_encoder.onnx", "golden.npz"]


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


@pytest.mark.parametrize("name", ["clip_encoder.onnx", "clip_encoder.onnx.data"])
def test_a_graph_is_refused_with_its_weights(copy, name):
    (copy / name).write_bytes(b"short")
    opened = Bundle(copy)
    with pytest.raises(BundleError, match=rf"{name} has sha256"):
        opened.graph_path(opened.manifest.clip_encoder)
    opened.graph_path(opened.manifest.text_encoder)


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
        ("lengths", lambda array: array[1:], r"lengths is int64 \[8\], expected int64 \[9\]"),
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


def test_golden_inputs_that_are_saved_are_read_back_the_same(bundle, tmp_path):
    golden, path = Bundle(bundle).golden, tmp_path / "golden.npz"
    golden.save(path)
    with np.load(bundle / "golden.npz") as before, np.load(path) as after:
        assert set(after.files) == set(before.files)
        for name in before.files:
            np.testing.assert_array_equal(after[name], before[name])
    replace(golden, raw=None).save(path)  # as of a bundle of schema 2
    with np.load(path) as after:
        assert set(before.files) - set(after.files) == {"texts", "picture", "pixels"}


def test_golden_captions_of_schema_2_are_as_long_as_up_to_their_end(tmp_path):
    golden = Bundle(unpack(tmp_path) / "bundle").golden
    assert golden.raw is None
    assert len(set(golden.lengths.tolist())) > 2
    for row, length in zip(golden.tokens.tolist(), golden.lengths.tolist(), strict=True):
        assert row.index(49407) == length - 1


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
