"""Which engine runs a graph when nobody says, and what is kept of that."""

import json
import logging
import time
from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest

from dgl_runtime import Retriever
from dgl_runtime.bundle.folder import GOLDEN, Bundle
from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.encoder import choice
from dgl_runtime.encoder.choice_cache import CachedChoice, ChoiceCache
from dgl_runtime.engines import candidates, installed, onnx
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.hardware import NvidiaGpu
from dgl_runtime.errors import BundleError, EngineError
from tests.helpers.changed_bundles import changed_bundle

openvino_too = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA here"
)
ONNX, OPENVINO = Candidate("onnx", "cpu"), Candidate("openvino", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_PAUSE_S", 0)
    return tmp_path / "cache" / "dgl-retrieval" / "engines"


@pytest.fixture
def only(monkeypatch):
    """Only these engines are installed."""

    def install(*names):
        for module in (candidates, installed):
            monkeypatch.setattr(module, "is_installed", lambda name: name in names)

    return install


@pytest.fixture
def openvino_engine():
    return pytest.importorskip("dgl_runtime.engines.openvino").OpenVinoEngine


def chosen(bundle, name="text_encoder", device="cpu", engine="auto", threads=1):
    return choice.choose(Bundle(bundle), name, device=device, engine=engine, threads=threads)


def slowed(monkeypatch, kind):
    real = kind.run

    def run(self, inputs):
        time.sleep(0.02)
        return real(self, inputs)

    monkeypatch.setattr(kind, "run", run)


def spoiled(monkeypatch, kind):
    real = kind.run
    monkeypatch.setattr(
        kind, "run", lambda self, inputs: {k: v + 0.01 for k, v in real(self, inputs).items()}
    )


def forbid_measuring(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("something was measured")

    monkeypatch.setattr(choice, "check_graph", fail)
    monkeypatch.setattr(choice, "time_in_turn", fail)


# ---- choosing --------------------------------------------------------------------------------


@openvino_too
@pytest.mark.parametrize("name", ["text_encoder", "clip_encoder"])
@pytest.mark.parametrize("faster", [ONNX, OPENVINO])
def test_the_faster_engine_is_chosen_and_both_times_are_told(
    bundle, monkeypatch, only, openvino_engine, faster, name
):
    only("onnx", "openvino")
    slowed(monkeypatch, openvino_engine if faster == ONNX else onnx.OnnxEngine)
    found = chosen(bundle, name)
    assert found.candidate == faster
    (slower,) = {ONNX, OPENVINO} - {faster}
    unit = {"text_encoder": "a query", "clip_encoder": "a clip"}[name]
    assert found.why.startswith("the fastest here: ")
    assert f" ms {unit}, " in found.why
    assert found.why.endswith(f" ms in {slower}")


@openvino_too
def test_an_engine_that_fails_the_self_check_is_not_chosen_and_says_why(
    bundle, monkeypatch, only, openvino_engine
):
    only("onnx", "openvino")
    spoiled(monkeypatch, openvino_engine)
    found = chosen(bundle, "clip_encoder")
    assert found.candidate == ONNX
    assert found.why.startswith("the one that works here; not openvino on cpu: bundle ")
    assert "fails its self-check: in OpenVINO" in found.why


@openvino_too
def test_golden_results_that_no_engine_gives_are_the_bundles_fault(bundle, tmp_path, only):
    only("onnx", "openvino")

    def spoil(golden):
        golden["caption_embeddings"][1, 2] += 0.01

    folder = changed_bundle(bundle, tmp_path / "copy", golden=spoil)
    with pytest.raises(BundleError, match="fails its self-check: in ONNX Runtime"):
        chosen(folder)
    assert chosen(folder, "clip_encoder").why.startswith("the fastest here")


@openvino_too
def test_a_graph_that_no_engine_opens_lists_every_reason(bundle, tmp_path, only, monkeypatch):
    only("onnx", "openvino")
    monkeypatch.setattr(Bundle, "graph_path", lambda self, graph: tmp_path / "empty.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(EngineError, match=r"no engine runs the text_encoder of bundle") as caught:
        chosen(bundle)
    assert "onnx on cpu: " in str(caught.value)
    assert "openvino on cpu: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_only_candidate_is_checked_once_and_not_timed(bundle, tmp_path, monkeypatch, only):
    def spoil(golden):
        golden["caption_embeddings"][1, 2] += 0.01

    only("onnx")
    monkeypatch.setattr(choice, "time_in_turn", None)
    for _ in range(2):
        found = chosen(bundle)
        assert (found.candidate, found.why) == (ONNX, "the one that works here")
        monkeypatch.setattr(choice, "check_graph", None)  # the second time it is known
    monkeypatch.undo()
    with pytest.raises(BundleError, match="fails its self-check"):
        chosen(changed_bundle(bundle, tmp_path / "copy", golden=spoil))


def test_an_engine_asked_for_by_name_is_not_measured(bundle, monkeypatch):
    forbid_measuring(monkeypatch)
    found = chosen(bundle, engine="onnx")
    assert (found.candidate, found.why) == (ONNX, "asked for by name")


@no_cuda
@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_device_auto_without_a_working_gpu_is_the_cpu_and_says_why(bundle, only, engine):
    only("onnx")
    found = chosen(bundle, device="auto", engine=engine)
    assert found.candidate == ONNX
    assert found.why.startswith("the one that works here; not onnx on cuda: device 'cuda' needs")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["text_encoder", "clip_encoder"])
def test_device_auto_with_a_gpu_is_cuda(bundle, name):
    assert chosen(bundle, name, device="auto", engine="onnx").candidate.device == "cuda"


# ---- what cannot be chosen -------------------------------------------------------------------


def test_a_missing_engine_says_what_is_there_and_what_to_install(bundle, only):
    only("onnx")
    with pytest.raises(EngineError) as caught:
        chosen(bundle, engine="openvino")
    assert str(caught.value) == (
        "engine 'openvino' needs the package 'openvino', which is not installed; installed "
        "engines: onnx. Install it with: pip install 'dgl-retrieval[openvino]'"
    )


def test_no_engine_at_all_says_what_to_install(bundle, only):
    only()
    with pytest.raises(EngineError) as caught:
        chosen(bundle)
    assert str(caught.value) == (
        "no engine for a bundle of format onnx on cpu is installed. Install one with: "
        "pip install 'dgl-retrieval[cpu]' or pip install 'dgl-retrieval[openvino]'"
    )


@pytest.mark.parametrize(
    ("bundle_format", "device", "engine", "message"),
    [
        (
            "openvino",
            "cpu",
            "onnx",
            "'onnx' does not read bundles of format openvino; .* openvino. .* --format onnx or --fo",
        ),
        ("onnx", "cuda", "trt-rtx", r"'trt-rtx' does not read bundles of format onnx; engines"),
        ("openvino", "cuda", "auto", r"do not run on cuda; their engines are openvino \(cpu\)\."),
        ("onnx", "cpu", "tensorflow", "engine is 'tensorflow'; it must be one of auto, onnx,"),
        ("onnx", "gpu", "auto", "device is 'gpu'; it must be one of auto, cpu, cuda."),
    ],
)
def test_what_does_not_go_together_is_refused(bundle_format, device, engine, message):
    with pytest.raises(EngineError, match=message):
        candidates.candidates(bundle_format, device, engine)


def test_an_engine_on_a_device_where_it_does_not_run_names_those_that_do(bundle):
    with pytest.raises(EngineError, match=r"'openvino' runs on cpu, device is 'cuda'\. Engines f"):
        chosen(bundle, device="cuda", engine="openvino")


def test_bundles_of_tensorrt_run_on_the_cpu_by_their_onnx_file(only):
    only("onnx", "tensorrt", "trt-rtx")
    for bundle_format, engine in (("trt", "tensorrt"), ("trt-rtx", "trt-rtx")):
        assert candidates.candidates(bundle_format, "cpu", "auto") == [ONNX]
        cuda = candidates.candidates(bundle_format, "cuda", "auto")
        assert cuda == [Candidate("onnx", "cuda"), Candidate(engine, "cuda")]
        assert candidates.candidates(bundle_format, "auto", "auto") == [*cuda, ONNX]


# ---- what is kept ----------------------------------------------------------------------------


@openvino_too
class TestASecondStart:
    @pytest.fixture(autouse=True)
    def first(self, bundle, only, monkeypatch, openvino_engine):
        only("onnx", "openvino")
        with monkeypatch.context() as patch:
            slowed(patch, onnx.OnnxEngine)
            self.found = chosen(bundle)
        assert self.found.candidate == OPENVINO

    def test_measures_nothing_and_says_the_same(self, bundle, monkeypatch):
        forbid_measuring(monkeypatch)
        again = chosen(bundle)
        assert (again.candidate, again.why) == (OPENVINO, self.found.why)

    @pytest.mark.parametrize("change", ["graph", "threads", "version", "cpu", "engines"])
    def test_of_anything_else_is_measured(self, bundle, monkeypatch, only, change):
        options = {"graph": {"name": "clip_encoder"}, "threads": {"threads": 2}}.get(change, {})
        if change == "version":
            monkeypatch.setattr("dgl_runtime.encoder.choice_cache.installed_version", str)
        elif change == "cpu":
            monkeypatch.setattr("dgl_runtime.encoder.choice_cache.cpu_model", lambda: "another")
        elif change == "engines":
            only("onnx")
        measured = []
        real = choice._measured
        monkeypatch.setattr(
            choice, "_measured", lambda *given: measured.append(given) or real(*given)
        )
        found = chosen(bundle, **options)
        assert measured or (change, found.candidate) == ("engines", ONNX)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"null", b'{"engine": 3}', b'"onnx"']
        + [json.dumps({"engine": e, "device": d, "why": "-"}).encode()
           for e, d in (("tensorrt", "cuda"), ("onnx", "cuda"), ("?", "cpu"))],
    )  # fmt: skip
    def test_with_a_damaged_file_measures_again(self, bundle, cache, content):
        (kept,) = cache.iterdir()
        whole = kept.read_bytes()
        kept.write_bytes(content)
        assert chosen(bundle).why.startswith("the fastest here")
        assert json.loads(kept.read_bytes()).keys() == json.loads(whole).keys()
        assert list(cache.iterdir()) == [kept]

    def test_with_a_choice_that_does_not_open_any_more_measures_again(
        self, bundle, monkeypatch, openvino_engine, caplog
    ):
        def broken(*arguments, **options):
            raise EngineError("no licence today.")

        monkeypatch.setattr(openvino_engine, "__init__", broken)
        found = chosen(bundle)
        assert found.candidate == ONNX
        assert found.why == "the one that works here; not openvino on cpu: no licence today."
        assert "openvino on cpu was chosen before, but now no licence today." in caplog.text


def test_another_engine_file_is_another_choice(tmp_path):
    def cached():
        return ChoiceCache("graph", engines, [Candidate("tensorrt", "cuda"), ONNX], threads=1)

    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "one.engine").write_bytes(b"1")
    cached().write(CachedChoice(ONNX, "the\nfastest"))
    assert cached().read() == CachedChoice(ONNX, "the fastest")
    (engines / "one.engine").write_bytes(b"12")
    assert cached().read() is None


@no_cuda
@pytest.mark.parametrize("gpus", [[], [NvidiaGpu("H100", "580.65", "9.0")]])
def test_a_gpu_that_did_not_work_is_tried_again(bundle, monkeypatch, only, cache, gpus):
    monkeypatch.setattr(choice, "nvidia_gpus", lambda: gpus)
    only("onnx")
    assert chosen(bundle, device="auto").candidate == ONNX
    assert cache.exists() == (not gpus)


@openvino_too
@pytest.mark.parametrize("place", ["a file", "no home"])
def test_without_a_cache_folder_the_choice_is_made_all_the_same(
    bundle, tmp_path, monkeypatch, only, place
):
    only("onnx", "openvino")
    if place == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:

        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr("dgl_runtime.encoder.choice_cache.cache_folder", homeless)
    assert chosen(bundle).why.startswith("the fastest here")


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", None, "home/.cache/dgl-retrieval"),
        ("darwin", None, "home/Library/Caches/dgl-retrieval"),
        ("win32", None, "home/AppData/Local/dgl-retrieval"),
        ("win32", "LOCALAPPDATA", "given/dgl-retrieval"),
        ("linux", "XDG_CACHE_HOME", "given/dgl-retrieval"),
        ("darwin", "XDG_CACHE_HOME", "given/dgl-retrieval"),
    ],
)
def test_the_cache_folder_is_where_the_platform_has_it(
    monkeypatch, tmp_path, platform, variable, expected
):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "given"))
    assert cache_folder() == tmp_path / expected


# ---- through Retriever -----------------------------------------------------------------------


def test_texts_alone_load_no_clip_graph(bundle, caplog):
    with caplog.at_level(logging.INFO, "dgl_runtime"):
        retriever = Retriever(bundle, threads=1)
        assert retriever.engine == "text_encoder: not loaded yet; clip_encoder: not loaded yet"
        retriever.embed_texts(["a dog"])
    captions = retriever.chosen("text_encoder")
    assert retriever.engine == f"text_encoder: {captions}; clip_encoder: not loaded yet"
    assert captions.engine.description in retriever.engine
    assert captions.why in retriever.engine
    assert caplog.messages == [f"text_encoder: {captions}"]


@openvino_too
def test_engines_differ_by_rounding(bundle):
    texts = ["a dog jumps into the lake", "cooking", ""]
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32), np.uint8)
    ours, theirs = (Retriever(bundle, engine=name, threads=1) for name in ("onnx", "openvino"))
    np.testing.assert_allclose(ours.embed_texts(texts), theirs.embed_texts(texts), atol=1e-5)
    np.testing.assert_allclose(
        ours.embed_clips(frames).embeddings, theirs.embed_clips(frames).embeddings, atol=1e-5
    )


def test_a_bundle_without_golden_inputs_names_them_when_it_is_measured(bundle, tmp_path, only):
    only("onnx", "openvino")
    folder = changed_bundle(bundle, tmp_path / "copy")
    (folder / GOLDEN).unlink()
    with pytest.raises(BundleError, match=r"has no file golden\.npz\. Export it again\."):
        chosen(folder)
