"""Writing a bundle: the gate, what the graphs look like, and that a failed export leaves nothing."""

import resource
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from tiny import tiny_backbone
from tiny_models import BOUND_TO_FRAMES, NUM_FRAMES, make_model

from dgl_export import bundle_writer, parity
from dgl_export.bundle_writer import write_bundle
from dgl_export.request import ExportRequest
from dgl_runtime import Retriever
from dgl_runtime.bundle import Bundle
from dgl_runtime.errors import ExportError

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


def test_graphs_are_free_where_the_method_is(bundle, exported):
    frames = NUM_FRAMES if exported in BOUND_TO_FRAMES else "frames"
    assert bundle.manifest.clips.inputs[0].shape[:2] == ("batch", frames)
    assert bundle.manifest.captions.inputs[0].shape == ("batch", "length")
    assert bundle.manifest.clips.inputs[0].dtype == "uint8"
    assert {file.name for file in bundle.folder.iterdir()} == {
        *bundle.manifest.files,
        "manifest.json",
    }


def test_graphs_tell_nothing_of_the_machine_that_made_them(bundle):
    for graph in (bundle.manifest.captions, bundle.manifest.clips):
        assert b".py" not in bundle.path(graph.file).read_bytes()


def test_onnx_runtime_fuses_what_it_should(bundle, tmp_path):
    """Attention stays as two matrix products with the scale inside, see docs/decisions.md."""
    import onnxruntime as ort

    for graph in (bundle.manifest.captions, bundle.manifest.clips):
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


def test_a_wrong_graph_does_not_pass_the_gate(backbone, tmp_path, monkeypatch):
    model = make_model(backbone, "dgl-linear")

    def wrong_fold(model, **settings):
        folded = original(model, **settings)
        folded.clips.projection[:, 0] *= 1.01
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
    request = replace(request_for(make_model(backbone, "zero-shot"), "zero-shot"), max_words=25)
    with pytest.raises(ExportError, match=r"max_words is 25, .* captions of 24 tokens"):
        write_bundle(request, tmp_path / "bundle")


def test_an_existing_folder_is_kept(backbone, tmp_path):
    with pytest.raises(ExportError, match="exists already"):
        write_bundle(request_for(make_model(backbone, "zero-shot"), "zero-shot"), tmp_path)
