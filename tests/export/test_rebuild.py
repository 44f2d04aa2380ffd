"""Engines of real graphs, built by TensorRT for RTX, which needs no GPU for it."""

import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dgl_export import quality
from dgl_export.bundle_writer import write_bundle
from dgl_export.calibration import made_calibration
from dgl_export.formats import Target
from dgl_export.request import ExportRequest
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.encoder import rebuild as building
from dgl_runtime.encoder.choice import open_graph
from dgl_runtime.encoder.rebuild import caption_profiles, clip_profiles, rebuild
from dgl_runtime.engines import tensorrt_library
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.cuda_device import Gpu
from dgl_runtime.engines.engine_file import Profile, engine_path, read_engine
from dgl_runtime.engines.tensorrt_build import build_engine
from dgl_runtime.errors import BundleError, EngineError, ExportError
from dgl_runtime.retriever import Retriever
from tests.helpers import fake_cuda
from tests.helpers.engine_files import require_on_gpu
from tests.helpers.refused_graphs import fp8_product, strange_node
from tests.helpers.tiny import tiny_backbone
from tests.helpers.tiny_models import BOUND_TO_FRAMES, NUM_FRAMES, make_model

trt = pytest.importorskip("tensorrt_rtx", reason="needs dgl-retrieval[trt-rtx]")
MAX_TOKENS = 20
EXAMPLES = {
    "tokens": np.random.default_rng(0).integers(1, 400, (2, 8)).astype(np.int32),
    "frames": np.random.default_rng(0)
    .integers(0, 255, (2, NUM_FRAMES, 3, 16, 16))
    .astype(np.uint8),
}


def request_for(method):
    about = (method, NUM_FRAMES, MAX_TOKENS, "a checkpoint", "0" * 64)
    return ExportRequest(make_model(tiny_backbone(), method), *about)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """From a method to its bundle, made once."""

    @cache
    def export(method):
        out = tmp_path_factory.mktemp("bundle") / method
        write_bundle(request_for(method), out)
        return Bundle(out)

    return export


@pytest.fixture(params=["dgl-linear", "dgl-transformer", "zero-shot"])
def method(request):
    return request.param


@pytest.fixture
def bundle(method, export):
    return export(method)


@pytest.fixture(params=["text_encoder", "clip_encoder"])
def graph(request, bundle):
    """A graph's file, its input and profiles."""
    manifest = bundle.manifest
    described = getattr(manifest, request.param)
    profiles = (
        caption_profiles(bundle.manifest.inputs.texts)
        if request.param == "text_encoder"
        else clip_profiles(described, NUM_FRAMES)
    )
    return bundle.folder / described.file, described.inputs[0].name, profiles


def test_rebuild_writes_engines_that_the_runtime_accepts(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    paths = rebuild(folder, "trt-rtx")
    graphs = [bundle.manifest.text_encoder, bundle.manifest.clip_encoder]
    expected = [engine_path(folder / one.file, "trt-rtx", trt.__version__, None) for one in graphs]
    assert paths == expected
    for path, described in zip(paths, graphs, strict=True):
        info, engine = read_engine(path, folder / described.file, None)
        assert (info.inputs, info.outputs) == (described.inputs, described.outputs)
        assert (info.library, info.library_version) == ("trt-rtx", trt.__version__)
        assert (info.precision, info.gpu, info.compute_capability) == ("fp32", "", "")
        assert len(engine) > 10_000
    assert sorted(path.suffix for path in (folder / "engines").iterdir()) == [".engine"] * 2 + [".json"] * 2  # fmt: skip  # noqa: E501
    Bundle(folder).graph_path(bundle.manifest.clip_encoder)  # still the bundle it was


def test_building_again_replaces_the_engines(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    assert rebuild(folder, "trt-rtx") == rebuild(folder, "trt-rtx")
    assert len(list((folder / "engines").iterdir())) == 4


@pytest.mark.parametrize(
    ("method", "precision"),
    [("dgl-linear", "int8"), ("dgl-transformer", "fp16"), ("zero-shot", "bf16")],
    indirect=["method"],
)
def test_a_bundle_of_a_lower_precision_holds_its_engines(export, method, precision, tmp_path):
    request = request_for(method)
    calibration = made_calibration(request.inputs.frames, request.tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quality.MIN_TOP1, precision, 0)  # to random weights all clips are alike
        write_bundle(request, tmp_path / "low", Target("trt-rtx", precision), calibration)
    write_bundle(request, tmp_path / "fp32", Target("trt-rtx", "fp32"))
    low, whole = (
        engine_path(tmp_path / name / "text_encoder.onnx", "trt-rtx", trt.__version__, None)
        for name in ("low", "fp32")
    )
    share = 0.9 if precision == "int8" else 0.75  # the tiny graph is mostly code
    assert low.stat().st_size < share * whole.stat().st_size
    info, _ = read_engine(low, tmp_path / "low/text_encoder.onnx", None)
    assert info.precision == precision
    assert len(list((tmp_path / "low/engines").iterdir())) == 4


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_where_there_is_a_gpu_an_engine_is_kept_if_it_passes_the_self_check(
    export, tmp_path, monkeypatch, error
):
    class OnTheGpu:
        description = "a GPU"

        def __init__(self, *asked):
            self.engine = open_graph(*asked, Candidate("onnx", "cpu"), threads=1)

        def run(self, inputs):
            return {name: array + error for name, array in self.engine.run(inputs).items()}

    def opened(bundle, name, candidate, threads):
        asked.append((name, candidate))
        return OnTheGpu(bundle, name)

    asked = []
    monkeypatch.setattr(building, "why_not_run", str)
    monkeypatch.setattr(building, "open_graph", opened)
    folder = shutil.copytree(export("dgl-linear").folder, tmp_path / "bundle")
    if error:
        with pytest.raises(
            ExportError, match=r"are not kept: .* in a GPU, text_encoder results differ"
        ):
            rebuild(folder, "trt-rtx")
        assert not (folder / "engines").exists()
    else:
        assert all(path.exists() for path in rebuild(folder, "trt-rtx"))
        on_cuda = Candidate("trt-rtx", "cuda")
        assert asked == [("text_encoder", on_cuda), ("clip_encoder", on_cuda)]
    assert list(folder.glob(".*")) == []


def test_an_engine_that_does_not_build_leaves_no_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "caption_profiles", lambda *_: (Profile((1,), (1,), (1,)),))
    with pytest.raises(ExportError, match=r"cannot build .* profile 0"):
        write_bundle(request_for("dgl-linear"), tmp_path / "bundle", Target("trt-rtx", "fp32"))
    assert list(tmp_path.iterdir()) == []


def test_every_caption_of_the_tokenizer_fits_the_profiles(bundle):
    tokenizer = Retriever(bundle.folder).tokenizer
    texts = ["", "a dog", "word " * 99]
    profiles = caption_profiles(bundle.manifest.inputs.texts)
    for shape in [tokenizer([text]).ids.shape for text in texts]:
        assert profiles[0].covers(shape)
    assert profiles[1].covers(tokenizer(texts[2:] * 64).ids.shape)
    assert profiles[1].maximum == (64, MAX_TOKENS)


@pytest.mark.parametrize(("max_tokens", "usual"), [(8, 8), (32, 16), (77, 16)])
def test_captions_may_be_as_long_as_the_bundle_says(max_tokens, usual):
    one, many = caption_profiles(clip_texts(max_tokens))
    assert one == Profile((1, 2), (1, usual), (1, max_tokens))
    assert many == Profile((1, 2), (8, usual), (64, max_tokens))


@pytest.mark.parametrize(
    ("rules", "shortest"),
    [
        ({}, 2),
        ({"start_id": None}, 1),
        ({"end_id": None, "read": "last"}, 1),
        ({"start_id": None, "end_id": None, "read": "last"}, 1),  # no engine takes rows of 0
    ],
)
def test_the_shortest_caption_is_what_a_model_puts_around_it(rules, shortest):
    one, many = caption_profiles(replace(clip_texts(32), **rules))
    assert (one.minimum, many.minimum) == ((1, shortest), (1, shortest))


@pytest.mark.parametrize("max_tokens", [32, 64])
def test_captions_of_one_length_have_that_one(max_tokens):
    one, many = caption_profiles(replace(clip_texts(max_tokens), pad_to=64))
    assert one == Profile((1, 64), (1, 64), (1, 64))
    assert many == Profile((1, 64), (8, 64), (64, 64))


def test_frames_are_free_where_the_graph_is(bundle):
    (profile,) = clip_profiles(bundle.manifest.clip_encoder, NUM_FRAMES)
    fewest = NUM_FRAMES if bundle.manifest.source.method in BOUND_TO_FRAMES else 1
    assert profile == Profile((1, fewest, 3, 16, 16), (4, 3, 3, 16, 16), (16, 3, 3, 16, 16))


def test_engines_of_tensorrt_are_kept_for_each_gpu(export, tmp_path, monkeypatch):
    fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # the same family
    monkeypatch.setattr(tensorrt_library, "OLDEST", (1, 0))
    monkeypatch.setattr(building, "why_not_run", lambda: "stand-in")  # a stand-in runs nothing
    folder = shutil.copytree(export("dgl-linear").folder, tmp_path / "bundle")
    names = [path.name for path in rebuild(folder, "tensorrt")]
    key = f"tensorrt-{trt.__version__}-nvidia-fake-1-sm86"
    assert names == [f"text_encoder.{key}.engine", f"clip_encoder.{key}.engine"]
    path = folder / "engines" / names[0]
    info, _ = read_engine(path, folder / "text_encoder.onnx", Gpu("NVIDIA Fake 1", "8.6"))
    assert (info.gpu, info.compute_capability) == ("NVIDIA Fake 1", "8.6")


# ---- refusals: one line with the library's own words ------------------------------------------


def refusal(graph, *profiles):
    with pytest.raises(ExportError) as caught:
        build_engine(graph, profiles, trt)
    message = str(caught.value)
    assert "\n" not in message
    assert str(graph) in message
    return message


FLAT = Profile((1, 16), (4, 16), (8, 16))


def test_an_unknown_operator_is_named_with_its_node(tmp_path):
    message = refusal(strange_node(tmp_path / "strange.onnx"), FLAT)
    assert f"cannot read {tmp_path / 'strange.onnx'}: node node_of_ours (Strange): " in message
    assert "Plugin not found" in message


@pytest.mark.parametrize(
    "profile",
    [
        Profile((1,), (4,), (8,)),  # another rank
        Profile((1, 8), (4, 8), (8, 8)),  # not the fixed size
        Profile((8, 16), (4, 16), (1, 16)),  # the wrong way round
    ],
)
def test_a_profile_that_does_not_fit_the_graph_is_refused(tmp_path, profile):
    product = fp8_product(tmp_path / "product.onnx")
    message = refusal(product, profile)
    assert f"cannot build {product} for {profile}: " in message
    assert "it gave no reason" not in message


def test_a_graph_without_a_profile_is_refused(tmp_path):
    assert "profile" in refusal(fp8_product(tmp_path / "product.onnx"))


def test_a_precision_that_the_gpu_lacks_is_refused(tmp_path, monkeypatch):
    def for_sm86(log):
        builder = builder_class(log)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        names = ("create_network", "create_optimization_profile", "build_serialized_network")
        kept = {name: getattr(builder, name) for name in names}
        return SimpleNamespace(**kept, create_builder_config=lambda: config)

    builder_class = trt.Builder
    product = fp8_product(tmp_path / "product.onnx")
    monkeypatch.setattr(trt, "Builder", for_sm86)
    assert "fp8_e4m3" in refusal(product, FLAT)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 99])
def test_a_damaged_graph_is_refused(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    assert re.search("cannot read|has 0 inputs, expected 1", refusal(tmp_path / "x.onnx", FLAT))


def test_a_graph_without_its_weights_is_refused(bundle, tmp_path):
    shutil.copy(bundle.folder / "text_encoder.onnx", tmp_path)
    message = refusal(
        tmp_path / "text_encoder.onnx", *caption_profiles(bundle.manifest.inputs.texts)
    )
    assert "Failed to import initializer" in message


# ---- a failure leaves nothing ----------------------------------------------------------------


def test_a_second_graph_that_fails_leaves_no_engine_of_the_first(bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    before = sorted(folder.rglob("*"))
    bad = (Profile((1, 1), (1, 1), (1, 1)),)
    monkeypatch.setattr(building, "clip_profiles", lambda *_: bad)
    with pytest.raises(ExportError, match=r"cannot build .*clip_encoder\.onnx"):
        rebuild(folder, "trt-rtx")
    assert sorted(folder.rglob("*")) == before


def test_a_damaged_bundle_is_refused_before_anything_is_built(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (folder / "clip_encoder.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"clip_encoder\.onnx\.data has sha256"):
        rebuild(folder, "trt-rtx")
    assert not (folder / "engines").exists()


def test_an_unknown_library_lists_the_known_ones(bundle):
    with pytest.raises(
        EngineError, match=r"library is 'trt'; it must be one of tensorrt, trt-rtx\."
    ):
        rebuild(bundle.folder, "trt")


def test_without_tensorrt_one_line_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"Install it with: pip install") as caught:
        rebuild(bundle.folder, "tensorrt")
    assert "\n" not in str(caught.value)


def test_without_a_driver_tensorrt_is_not_started(export, monkeypatch):
    cuda = fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())
    cuda.code = 35
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0"))
    with pytest.raises(EngineError, match="CUDA does not start: CUDA driver version is insuff"):
        rebuild(export("dgl-linear").folder, "tensorrt")


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["tensorrt", "trt-rtx"])
def test_an_engine_built_here_gives_what_onnx_runtime_gives(bundle, tmp_path, engine):
    from dgl_runtime.engines.opening import open_engine

    require_on_gpu(engine)
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    rebuild(folder, engine)
    for file, name in (("text_encoder.onnx", "tokens"), ("clip_encoder.onnx", "frames")):
        gold = open_engine(folder / file, device="cpu", threads=1).run({name: EXAMPLES[name]})
        ours = open_engine(folder / file, device="cuda", threads=0, engine=engine)
        for _ in range(4):  # plain, captured, launched
            for output, expected in ours.run({name: EXAMPLES[name]}).items():
                np.testing.assert_allclose(expected, gold[output], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["tensorrt", "trt-rtx"])
def test_frames_on_the_gpu_give_what_frames_on_the_host_give(bundle, tmp_path, engine):
    from dgl_runtime.engines.opening import open_engine

    torch = pytest.importorskip("torch")
    require_on_gpu(engine)
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    rebuild(Path(folder), engine)
    ours = open_engine(folder / "clip_encoder.onnx", device="cuda", threads=0, engine=engine)
    host = ours.run({"frames": EXAMPLES["frames"]})
    device = ours.run({"frames": torch.from_numpy(EXAMPLES["frames"]).cuda()})
    np.testing.assert_array_equal(host["embedding"], device["embedding"])
