"""The repository that dgl-bundle triton writes, read by Triton's own description of a configuration."""

import json
import shutil

import numpy as np
import pytest

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.commands.bundle import triton
from dgl_runtime.encoder.served import padded, served_name
from dgl_runtime.encoder.triton_config import Placed
from dgl_runtime.encoder.triton_repository import write_repository
from dgl_runtime.engines.cuda_device import Gpu
from dgl_runtime.errors import BundleError, EngineError, ExportError
from tests.helpers.changed_bundles import changed_bundle
from tests.helpers.commands import failure, invoke
from tests.helpers.engine_files import make_engine
from tests.helpers.specs import text_spec

GRAPHS = ("text_encoder", "clip_encoder")
ON_CPU, ON_CUDA = Placed("cpu", 1, 0), Placed("cuda", 1, 0)
L4, H200 = Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA H200", "9.0")


def config_of(folder):
    """The configuration of a model, read by the description that Triton publishes."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def configs(bundle, out, placed):
    written = write_repository(Bundle(bundle), out, placed)
    return [config_of(model.folder) for model in written]


def test_a_repository_holds_both_graphs_and_all_that_a_server_needs(bundle, tmp_path):
    said = invoke(triton, bundle, tmp_path / "repository", "--instances", 2, "--threads", 3)
    opened = Bundle(bundle)
    text, clip = (tmp_path / "repository" / served_name(opened, name) for name in GRAPHS)
    assert said == f"{text}: ONNX Runtime on cpu\n{clip}: ONNX Runtime on cpu\n"
    for folder, name in ((text, "text_encoder"), (clip, "clip_encoder")):
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
            f"1/{name}.onnx",
            f"1/{name}.onnx.data",
            "config.pbtxt",
        ]
        for path in (folder / "1").iterdir():
            assert path.read_bytes() == (bundle / path.name).read_bytes()
    config = config_of(clip)
    assert (config.name, config.backend) == (clip.name, "onnxruntime")
    assert config.max_batch_size == 16
    assert [(one.name, list(one.dims)) for one in config.input] == [("frames", [-1, 3, 32, 32])]
    assert [(one.name, list(one.dims)) for one in config.output] == [
        ("embedding", [32]),
        ("frame_weights", [-1]),
    ]
    (group,) = config.instance_group
    assert (group.count, group.KIND_CPU) == (2, group.kind)
    assert config.HasField("dynamic_batching")
    told = {key: one.string_value for key, one in config.parameters.items()}
    assert InputSpec.from_json(json.loads(told.pop("input_spec"))) == opened.manifest.inputs
    assert told == {
        "bundle_id": opened.id,
        "precision": "fp32",
        "intra_op_thread_count": "3",
    }


def test_a_model_warms_up_with_a_golden_input(bundle, tmp_path):
    golden = Bundle(bundle).golden
    text, clip = write_repository(Bundle(bundle), tmp_path / "repository", ON_CPU)
    expected = {text: padded(golden.tokens[:1], Bundle(bundle).manifest.inputs.texts)}
    expected[clip] = golden.frames[:1]
    for model, array in expected.items():
        warm_ups = config_of(model.folder).model_warmup
        assert [one.batch_size for one in warm_ups] == ([1, 8] if model is text else [1, 4])
        for one in warm_ups:
            ((_, given),) = one.inputs.items()
            assert tuple(given.dims) == array.shape[1:]
            file = model.folder / "warmup" / given.input_data_file
            assert file.read_bytes() == array.tobytes()


def test_on_gpus_float32_is_float32(bundle, tmp_path):
    for config in configs(bundle, tmp_path / "repository", ON_CUDA):
        (group,) = config.instance_group
        assert group.kind == group.KIND_GPU
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [(one.name, dict(one.parameters)) for one in accelerators] == [
            ("cuda", {"use_tf32": "0"})
        ]
        assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
        assert config.parameters["arena_extend_strategy"].string_value == "1"


def test_several_bundles_lie_in_one_repository(bundle, other_bundle, tmp_path):
    for one in (bundle, other_bundle):
        write_repository(Bundle(one), tmp_path / "repository", ON_CPU)
    assert len(list((tmp_path / "repository").iterdir())) == 4
    with pytest.raises(ExportError, match=r"is there already\. Remove it to write it again"):
        write_repository(Bundle(bundle), tmp_path / "repository", ON_CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_damaged_bundle_leaves_no_repository(bundle, tmp_path):
    broken = shutil.copytree(bundle, tmp_path / "broken")
    with (broken / "clip_encoder.onnx.data").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"was\s+damaged or changed"):
        write_repository(Bundle(broken), tmp_path / "repository", ON_CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_what_onnx_runtime_cannot_serve_is_refused_in_a_line(bundle, tmp_path):
    other = changed_bundle(bundle, tmp_path / "vino", format="openvino")
    line, _ = failure("bundle", "triton", other, tmp_path / "repository")
    assert line == (
        f"{other} is of format openvino; a repository is written of onnx, trt, trt-rtx. Export the model with "
        "--format onnx."
    )
    half = changed_bundle(bundle, tmp_path / "bf16", precision="bf16")
    with pytest.raises(ExportError, match=r"is bf16, which ONNX Runtime does not run on CPUs"):
        write_repository(Bundle(half), tmp_path / "repository", ON_CPU)
    write_repository(Bundle(half), tmp_path / "repository", ON_CUDA)


# ---- TensorRT --------------------------------------------------------------------------------


@pytest.fixture
def with_engines(bundle, tmp_path):
    """A bundle with made engines for two GPUs, and a function that makes more of them."""
    folder = changed_bundle(bundle, tmp_path / "trt", format="trt")

    def make(gpu, **options):
        return [
            make_engine(folder / f"{name}.onnx", gpu=gpu, plan=f"{name} {gpu}".encode(), **options)
            for name in GRAPHS
        ]

    for gpu in (L4, H200):
        make(gpu)
    return folder, make


def test_engines_are_served_in_place_of_onnx_each_on_its_gpus(with_engines, tmp_path):
    folder, _ = with_engines
    written = write_repository(Bundle(folder), tmp_path / "repository", ON_CUDA)
    assert {model.runs_in for model in written} == {
        "TensorRT 11.4.0.106, which the server must have, on NVIDIA H200 and NVIDIA L4"
    }
    for model, name, most, profile in zip(written, GRAPHS, (16, 4), ("1", "0"), strict=True):
        config = config_of(model.folder)
        assert (config.backend, config.max_batch_size) == ("tensorrt", most)
        files = dict(config.cc_model_filenames)
        assert files.keys() == {"8.9", "9.0"}
        for gpu in (L4, H200):
            plan = model.folder / "1" / files[gpu.compute_capability]
            assert plan.read_bytes() == f"{name} {gpu}".encode()
        assert len(list((model.folder / "1").iterdir())) == 2
        assert config.default_model_filename in files.values()
        (group,) = config.instance_group
        assert list(group.profile) == [profile]  # the one with the largest batch
        assert max(one.batch_size for one in config.model_warmup) <= most


def test_on_cpus_a_bundle_with_engines_is_served_by_its_onnx_files(with_engines, tmp_path):
    folder, _ = with_engines
    for config in configs(folder, tmp_path / "repository", ON_CPU):
        assert config.backend == "onnxruntime"


def test_engines_of_two_versions_do_not_go_together(with_engines, tmp_path):
    folder, make = with_engines
    make(L4, version="10.13.0")
    with pytest.raises(
        ExportError, match=r"for TensorRT 10\.13\.0 and 11\.4\.0\.106; a server has"
    ):
        write_repository(Bundle(folder), tmp_path / "repository", ON_CUDA)


def test_two_gpus_of_one_capability_do_not_go_together(with_engines, tmp_path):
    folder, make = with_engines
    make(Gpu("NVIDIA L40S", "8.9"))
    with pytest.raises(
        ExportError, match=r"several engines of text_encoder for compute capability 8"
    ):
        write_repository(Bundle(folder), tmp_path / "repository", ON_CUDA)


def test_a_damaged_engine_is_refused(with_engines, tmp_path):
    folder, _ = with_engines
    next((folder / "engines").glob("*.engine")).write_bytes(b"x")
    with pytest.raises(EngineError, match=r"should have sha256"):
        write_repository(Bundle(folder), tmp_path / "repository", ON_CUDA)


# ---- lengths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "padded_to"), [(1, 8), (8, 8), (9, 16), (29, 30), (30, 30)])
def test_texts_of_nearly_one_length_become_of_one(length, padded_to):
    tokens = np.arange(2 * length, dtype=np.int32).reshape(2, length) + 1
    found = padded(tokens, text_spec(max_tokens=30, pad_id=7))
    assert found.shape == (2, padded_to)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[:, :length], tokens)
    assert (found[:, length:] == 7).all()
