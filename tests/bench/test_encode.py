import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encode, encode_variants
from benchmarks.cli import bench
from benchmarks.encode_variants import COMPILED, ENGINE_NAMES, FOLDED, TARGETS, UNFOLDED
from benchmarks.options import COMPILE_MODES
from benchmarks.work import block_flop, caption_work, clip_work
from dgl_export import quality
from dgl_export.fold import fold
from dgl_export.formats import Target
from dgl_runtime.errors import EngineError

METHODS = ["dgl-linear", "dgl-transformer"]


@pytest.fixture
def run(backbone_folder, small_peaks, tmp_path):
    def invoke(*options):
        fixed = ["encode", "--backbone", str(backbone_folder), "--rounds", "2", "--threads", "1"]
        result = CliRunner().invoke(bench, [*fixed, "--out", str(tmp_path / "out"), *options])
        return result, sorted((tmp_path / "out").iterdir(), key=lambda path: path.suffix)

    return invoke


def test_every_variant_is_measured_and_written(run, monkeypatch):
    def quick(encoder, mode, **options):  # seconds sooner
        return compile_(encoder, backend="eager", **options)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", quick)
    result, files = run("--num-frames", "3", "--method", "dgl-linear", "--batches", "2")
    assert result.exit_code == 0, result.output
    assert [path.suffix for path in files] == [".json", ".md", *[".png"] * 4]
    assert result.stdout == files[1].read_text()
    document = json.loads(files[0].read_text())
    assert document["settings"]["backbone"] == "backbone"  # a folder's path is nobody's business
    assert document["settings"]["caption_tokens"] == 11
    assert document["settings"]["padded_tokens"] == 32
    found = [(one["task"], one["batch"]) for one in document["series"]]
    assert found == [("query", 1), ("query", 2), ("clip", 1), ("clip", 2)]
    engines = [f"{ENGINE_NAMES[target.form]} {target.precision}" for target in TARGETS["cpu"]]
    for one in document["series"]:
        rows = one["rows"]
        assert [row["variant"] for row in rows] == [UNFOLDED, FOLDED, *COMPILED.values(), *engines]
        for row in rows:
            if row["precision"] == "fp32" and "max_abs" in row:
                assert row["max_abs"] <= 1e-5
            if one["batch"] == 1:
                assert len(row["times_ms"]) == 2
                assert row["min_cosine"] > 0.99
            assert row["variant"] in result.stdout
        assert one["flop"] > 0
        assert one["weights"] > 0


@pytest.fixture
def stand_in(monkeypatch):
    """Folded torch in place of the engines, whose export takes seconds."""

    def use(change=lambda task, embedding: embedding):
        folded = []
        monkeypatch.setattr(encode, "export", lambda *given: folded.append(given[0]))

        def variants(*_):
            (pair,) = folded
            run = partial(encode_variants._run_torch, device="cpu")
            calls = {
                "query": lambda given: change("query", run(pair.captions, given.tokens)),
                "clip": lambda given: change("clip", run(pair.clips, given.frames)),
            }
            yield encode_variants.Variant("ONNX Runtime fp32", "fp32", calls, {})

        monkeypatch.setattr(encode, "engine_variants", variants)

    return use


@pytest.mark.parametrize("method", METHODS)
def test_one_method_without_compilation_on_one_frame(run, stand_in, method):
    stand_in()
    result, files = run("--method", method, "--compile", "", "--num-frames", "1")
    assert result.exit_code == 0, result.output
    series = json.loads(files[0].read_text())["series"]
    assert [one["method"] for one in series] == [method, method]
    assert [row["variant"] for row in series[0]["rows"]][:2] == [UNFOLDED, FOLDED]


def test_a_missing_compiler_is_told_in_the_row(run, stand_in, monkeypatch):
    stand_in()

    def compile_nothing(encoder, **_):
        def call(values):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in (None, '/x')")

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    options = ("--method", "dgl-linear", "--num-frames", "2", "--compile", "default")
    result, files = run(*options)
    assert result.exit_code == 0, result.output
    assert f"{COMPILED['default']}: not measured, no C++ compiler" in result.stdout
    for one in json.loads(files[0].read_text())["series"]:
        row = next(row for row in one["rows"] if row["variant"] == COMPILED["default"])
        assert row["remark"].startswith("not measured, no C++ compiler")
        assert "times_ms" not in row


def test_an_engine_that_is_not_there_is_told_in_the_row(run, monkeypatch):
    real = encode_variants.write_graph

    def write(model, graph, target, place):
        if target.form == "openvino":
            raise EngineError("OpenVINO is not here; pip install it")
        return real(model, graph, target, place)

    monkeypatch.setattr(encode_variants, "write_graph", write)
    monkeypatch.setitem(TARGETS, "cpu", TARGETS["cpu"][:1] + TARGETS["cpu"][2:3])
    result, _ = run("--method", "dgl-linear", "--compile", "", "--num-frames", "2")
    assert result.exit_code == 0, result.output
    assert "OpenVINO fp32: not measured, OpenVINO is not here; pip install it" in result.stdout


def test_what_the_gate_would_refuse_is_timed_and_said_to_be_refused(run, monkeypatch):
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 1.1)
    monkeypatch.setitem(TARGETS, "cpu", (Target("onnx", "int8"),))
    result, files = run("--method", "dgl-linear", "--compile", "", "--num-frames", "2")
    assert result.exit_code == 0, result.output
    assert "(at least 110% needed)" in result.stdout
    for one in json.loads(files[0].read_text())["series"]:
        row = one["rows"][-1]
        assert (row["variant"], len(row["times_ms"])) == ("ONNX Runtime int8", 2)
        assert len(row["kept"]) == 2


def test_other_failures_of_the_compiler_name_no_folder():
    error = RuntimeError("CppCompileError: /home/someone/x.cpp is broken\nmore")
    reason = encode_variants.compiler_reason(error)
    assert reason == "not measured, CppCompileError: ... is broken"


@pytest.mark.parametrize("task", ["query", "clip"])
@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_a_wrong_variant_has_no_time_and_fails(run, stand_in, task, wrong):
    stand_in(lambda which, embedding: embedding + wrong if which == task else embedding)
    result, files = run("--method", "dgl-linear", "--compile", "", "--num-frames", "2")
    assert result.exit_code == 1
    found = f"its embeddings are off by {wrong:.1e}, rounding is 1e-05"
    assert result.stderr.splitlines()[-1] == (
        f"Error: dgl-linear, {task}, batch 1: ONNX Runtime fp32: {found}"
    )
    for one in json.loads(files[0].read_text())["series"]:
        row = next(row for row in one["rows"] if row["variant"] == "ONNX Runtime fp32")
        is_wrong = one["task"] == task
        assert ("times_ms" in row) != is_wrong
        assert row.get("remark") == (f"not measured, {found}" if is_wrong else None)


def test_an_unknown_mode_of_the_compiler_is_wrong_usage():
    assert tuple(COMPILED) == COMPILE_MODES
    result = CliRunner().invoke(bench, ["encode", "--compile", "default,fast"])
    assert result.exit_code == 2
    assert "got fast, known are default, max-autotune." in result.stderr


@pytest.mark.parametrize("batches", ["0", "1,x", "-3"])
def test_batch_sizes_that_are_none_are_refused(run, batches):
    result = CliRunner().invoke(bench, ["encode", "--batches", batches])
    assert result.exit_code == 2
    assert "expected numbers above 0 with commas." in result.output


def test_an_unknown_backbone_is_one_line(tmp_path):
    result = CliRunner().invoke(
        bench, ["encode", "--backbone", "no-such", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: backbone 'no-such'")


def test_threads_of_torch_come_back():
    before = torch.get_num_threads()
    with encode.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_block_flop_by_hand():
    # D 2, H 8. k, v of 3 tokens: 2 * 3*(2x2); q, out of 1: 2 * 1*(2x2); MLP: 2 * 1*(2x8);
    # 5 pairs, twice: 2 * 5*2. A multiply-add is 2.
    by_hand = 2 * (2 * 3 * 4 + 2 * 1 * 4 + 2 * 1 * 16 + 2 * 5 * 2)
    assert block_flop(2, 8, kv=3, q=1, pairs=5) == by_hand == 168


@pytest.mark.parametrize("method", METHODS)
def test_flop_are_those_torch_counts(backbone, method):
    inputs = encode.make_inputs(backbone, 3)
    model = encode.make_model(backbone, method, 3)
    folded = fold(model)
    works = {
        folded.captions: (inputs.tokens, caption_work(backbone, folded, pieces=10)),
        folded.clips: (inputs.frames, clip_work(backbone, folded, 3)),
    }
    for encoder, (values, work) in works.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(values)
        assert work.flop == counter.get_total_flops()


def test_weights_count_read_rows_of_the_embedding_only(backbone):
    folded = fold(encode.make_model(backbone, "dgl-linear", 3))
    width, hidden, blocks, embed_dim, constants = 16, 64, 2, 32, 5
    linear = 4 * (width * width + width) + 2 * width * hidden + hidden + width
    block = linear + 4 * width + 2 * constants * width
    rows = 2 * 10 * width  # of the token and the position table
    floats = blocks * block + 2 * width + width * embed_dim + rows
    assert caption_work(backbone, folded, pieces=10).weights == floats
