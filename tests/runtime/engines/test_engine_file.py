import json
import os
import re
import shutil
from pathlib import Path

import pytest

from dgl_runtime.engines.cuda_device import Gpu
from dgl_runtime.engines.engine_file import Profile, engine_path, read_engine, save_engines
from dgl_runtime.errors import EngineError
from tests.helpers.engine_files import FAKE_GPU, make_engine, make_graph


@pytest.fixture
def graph(tmp_path):
    return make_graph(tmp_path)


@pytest.fixture
def engine(graph):
    return make_engine(graph)


def sidecar(path):
    return path.with_suffix(".json")


def refusal(path, graph, gpu=FAKE_GPU):
    """The message of the refusal: one line that ends with the remedy."""
    with pytest.raises(EngineError) as caught:
        read_engine(path, graph, gpu)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"Build it for this machine: dgl-bundle rebuild {graph.parent}")
    return message


def test_an_engine_is_named_after_graph_library_and_gpu(engine, graph):
    assert engine.relative_to(graph.parent) == Path(
        "engines/text_encoder.tensorrt-11.4.0.106-nvidia-fake-1-sm86.engine"
    )
    portable = engine_path(graph, "trt-rtx", "1.7.1", None)
    assert portable.name == "text_encoder.trt-rtx-1.7.1-portable.engine"


def test_what_was_written_is_read(engine, graph):
    info, content = read_engine(engine, graph, FAKE_GPU)
    assert content == engine.read_bytes()
    assert (info.library, info.gpu, info.compute_capability) == ("tensorrt", "NVIDIA Fake 1", "8.6")
    assert info.profiles[0] == Profile((1, 2), (1, 4), (1, 32))
    assert info.to_json() == sidecar(engine).read_text()


def test_a_missing_engine_says_that_there_is_none(graph):
    path = engine_path(graph, "tensorrt", "11.4", FAKE_GPU)
    assert "text_encoder.onnx there is none" in refusal(path, graph)


@pytest.mark.parametrize(
    ("version", "gpu"), [("11.5", FAKE_GPU), ("11.4.0.106", Gpu("NVIDIA L4", "8.9"))]
)
def test_an_engine_of_another_version_or_gpu_is_named(engine, graph, version, gpu):
    path = engine_path(graph, "tensorrt", version, gpu)
    message = refusal(path, graph, gpu)
    assert message.startswith(f"{path} is missing")
    assert f"there is {engine.name}." in message


def test_an_engine_renamed_for_another_version_is_refused(engine, graph):
    other = engine_path(graph, "tensorrt", "11.5", FAKE_GPU)
    shutil.copy(engine, other)
    shutil.copy(sidecar(engine), sidecar(other))
    assert f"was built as {engine.name}" in refusal(other, graph)


def test_an_engine_of_a_gpu_of_another_capability_is_refused_whatever_its_name(engine, graph):
    gpu = Gpu("NVIDIA-Fake 1", "8.6")  # another name with the same key
    assert "was built for NVIDIA Fake 1 (8.6)" in refusal(engine, graph, gpu)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_engine_is_refused(engine, graph, damage):
    content = engine.read_bytes()
    kept = {"truncated": content[:-1], "changed": content[:-1] + b"!", "empty": b""}[damage]
    engine.write_bytes(kept)
    assert "should have sha256" in refusal(engine, graph)


@pytest.mark.parametrize("name", ["text_encoder.onnx", "text_encoder.onnx.data"])
def test_an_engine_of_another_graph_or_other_weights_is_refused(engine, graph, name):
    (graph.parent / name).write_bytes(b"other")
    assert "was built from a graph with sha256" in refusal(engine, graph)


def test_a_missing_sidecar_is_named(engine, graph):
    sidecar(engine).unlink()
    assert f"cannot be used without its sidecar: [Errno 2] No such file or directory: '{sidecar(engine)}'" in refusal(engine, graph)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("profiles"),
        lambda data: data.update(more=1),
        lambda data: data.update(schema_version=9),
        lambda data: data.update(gpu=3),
        lambda data: data.update(inputs=[{"name": "x"}]),
        lambda data: data.update(profiles=[{"low": [1]}]),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(engine, graph, change):
    data = json.loads(sidecar(engine).read_text())
    change(data)
    sidecar(engine).write_text(json.dumps(data))
    assert f"{sidecar(engine)} is not the sidecar of an engine" in refusal(engine, graph)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{}"])
def test_a_sidecar_that_is_none_is_refused(engine, graph, content):
    sidecar(engine).write_bytes(content)
    assert "sidecar" in refusal(engine, graph)


@pytest.mark.parametrize("there_before", [False, True])
def test_a_failed_write_changes_nothing(graph, monkeypatch, there_before):
    path = engine_path(graph, "tensorrt", "11.4.0.106", FAKE_GPU)
    if there_before:
        make_engine(graph)
    before = {one: one.read_bytes() for one in graph.parent.rglob("*") if one.is_file()}
    write = Path.write_bytes

    def full(target, content):
        write(target, content[:3])
        if target.name.endswith(f".engine.{os.getpid()}"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        make_engine(graph, plan=b"another")
    assert {one: one.read_bytes() for one in graph.parent.rglob("*") if one.is_file()} == before
    assert path.parent.exists() == there_before


def test_two_engines_are_written_together_or_not_at_all(graph, monkeypatch):
    first = make_engine(graph)
    info, plan = read_engine(first, graph, FAKE_GPU)
    shutil.rmtree(first.parent)
    second = first.with_name("clip_encoder.engine")
    with pytest.raises(TypeError):
        save_engines({first: (info, plan), second: (info, None)})
    assert not first.parent.exists()


@pytest.mark.parametrize(
    ("shape", "covered"), [((1, 2), True), ((4, 32), True), ((5, 8), False), ((1, 1), False), ((1,), False)]
)  # fmt: skip
def test_a_profile_covers_what_lies_between_its_ends(shape, covered):
    assert Profile((1, 2), (1, 8), (4, 32)).covers(shape) == covered


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("profiles",), [], "1 inputs, 1 outputs and 0 profiles"),
        (("inputs",), [], "0 inputs, 1 outputs and 2 profiles"),
        (("profiles", 0, "best"), [1], "profile .* does not fit tokens"),
        (("profiles", 0, "best"), [1, "x"], "profile .* does not fit tokens"),
        (("profiles", 0, "best"), [1, 99], "profile .* does not rise"),
        (
            ("outputs", 0, "shape"),
            ["rows", 5],
            r"embedding has dimensions \{'rows'\} that are none",
        ),
        (("outputs", 0, "shape"), [None, 5], "embedding has dimensions .* expected names and num"),
        (("outputs", 0, "dtype"), "floaty", "floaty"),
    ],
)
def test_a_sidecar_that_no_engine_can_have_is_refused(engine, graph, where, value, message):
    values = json.loads(sidecar(engine).read_text())
    part = values
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    sidecar(engine).write_text(json.dumps(values))
    assert re.search(f"is not the sidecar of an engine: .*{message}", refusal(engine, graph))
