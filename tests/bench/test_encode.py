import json
from functools import partial

import open_clip
import pytest
import torch
from click.testing import CliRunner

from dgl_bench import encode_subject, encode_variants
from dgl_bench.encode import MODES, encode
from dgl_bench.encode_subject import FOLDED, OPEN_CLIP, UNFOLDED
from dgl_bench.encode_variants import COMPILED, ENGINE_NAMES, TARGETS
from dgl_export import quality
from dgl_export.fold import fold
from dgl_export.formats import Target
from dgl_export.plain import PlainTextEncoder
from dgl_runtime.errors import EngineError
from tests.helpers.blip_folders import write_blip
from tests.helpers.open_clip_folders import BOTH_WAYS, FAMILIES, write_open_clip
from tests.helpers.openvino_cpu import has_bf16

METHODS = ["dgl-linear", "dgl-transformer"]


QUALITY = "Quality of the lower precisions"


def rows_of(files):
    """(task, batch) -> rows."""
    tables = json.loads(files[0].read_text())["tables"]
    found = {}
    for title, rows in tables.items():
        if title != QUALITY:
            for row in rows:
                task = "query" if title.startswith("Queries") else "clip"
                found.setdefault((task, row["batch"]), []).append(row)
    return found


@pytest.fixture
def run(backbone_folder, small_peaks, tmp_path):
    def invoke(*options):
        fixed = ["--backbone", str(backbone_folder), "--rounds", "2", "--threads", "1"]
        result = CliRunner().invoke(encode, [*fixed, "--out", str(tmp_path / "out"), *options])
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
    document = json.loads(files[0].read_text())
    assert document["settings"]["backbone"] == "backbone"  # a folder's path is nobody's business
    found = rows_of(files)
    assert (found["query", 1][0]["tokens"], found["query", 1][0]["padded to"]) == (11, 32)
    assert (found["clip", 1][0]["frames"], found["clip", 1][0]["pixels"]) == (3, 16)
    assert found.keys() == {(task, batch) for task in ("query", "clip") for batch in (1, 2)}
    engines = [f"{ENGINE_NAMES[target.form]} {target.precision}" for target in TARGETS["cpu"]]
    compiled = [f"{FOLDED}, {mode}" for mode in COMPILED.values()]
    for (_, batch), rows in found.items():
        expected = [UNFOLDED, FOLDED, *(compiled if batch == 1 else []), *engines]
        assert [row["variant"] for row in rows] == expected
        for row in rows:
            assert row["variant"] in result.stdout
            if row["precision"] == "bf16" and not has_bf16():
                assert row["remark"].startswith("not measured, this CPU has no bfloat16"), row
                continue
            if row["precision"] == "fp32":
                assert row["off by"] <= 1e-5
            if batch == 1:
                assert len(row["times_ms"]) == 2
                assert row["cosine"] > 0.99
                assert ("GFLOP" in row) == (row["variant"] not in (UNFOLDED, FOLDED))
                assert row["than compiled"]["median"] > 0
    assert [row["variant"] for row in document["tables"][QUALITY]] == [
        name for name in engines if not name.endswith(("fp32", *(() if has_bf16() else ("bf16",))))
    ]


@pytest.fixture
def stand_in(monkeypatch):
    """Folded torch in place of the engines, whose export takes seconds."""

    def use(change=lambda task, embedding: embedding):
        monkeypatch.setattr(encode_subject, "export", lambda *_, **__: [])

        def variants(subject, *_):
            pair = subject.in_torch[-1]
            run = partial(encode_variants._run_torch, device="cpu")
            calls = {
                "query": lambda given: change("query", run(pair.text_encoder, given.tokens)),
                "clip": lambda given: change("clip", run(pair.clip_encoder, given.frames)),
            }
            yield encode_variants.Variant("ONNX Runtime fp32", "fp32", calls, {})

        monkeypatch.setattr(encode_variants, "engine_variants", variants)

    return use


@pytest.mark.parametrize("method", METHODS)
def test_one_method_without_compilation_on_one_frame(run, stand_in, method):
    stand_in()
    result, files = run("--method", method, "--compile", "", "--num-frames", "1")
    assert result.exit_code == 0, result.output
    found = rows_of(files)
    assert found.keys() == {("query", 1), ("clip", 1)}
    assert [row["variant"] for row in found["query", 1]][:2] == [UNFOLDED, FOLDED]
    assert {row["method"] for row in found["clip", 1]} == {method}


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
    assert "not measured, no C++ compiler" in result.stdout
    for rows in rows_of(files).values():
        row = next(row for row in rows if row["variant"] == f"{FOLDED}, compiled")
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
    assert "not measured, OpenVINO is not here; pip install it" in result.stdout


def test_what_the_gate_would_refuse_is_timed_and_said_to_be_refused(run, monkeypatch):
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 1.1)
    monkeypatch.setitem(TARGETS, "cpu", (Target("onnx", "int8"),))
    result, files = run("--method", "dgl-linear", "--compile", "", "--num-frames", "2")
    assert result.exit_code == 0, result.output
    assert "(at least 110% needed)" in result.stdout
    for rows in rows_of(files).values():
        assert (rows[-1]["variant"], len(rows[-1]["times_ms"])) == ("ONNX Runtime int8", 2)


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
        f"Error: backbone, dgl-linear, {task}, batch 1: ONNX Runtime fp32: {found}"
    )
    for (which, _), rows in rows_of(files).items():
        row = next(row for row in rows if row["variant"] == "ONNX Runtime fp32")
        is_wrong = which == task
        assert ("times_ms" in row) != is_wrong
        assert row.get("remark") == (f"not measured, {found}" if is_wrong else None)


@pytest.fixture
def open_clips_own(tmp_path, monkeypatch):
    """A model that open_clip knows by name, and a folder: texts of both are padded, each in its way."""
    config, _ = FAMILIES["mean-of-patches"]
    text = {**config["text_cfg"], "hf_tokenizer_name": "far/away", "vocab_size": 99}
    far = {**config, "embed_dim": 24, "text_cfg": {**text, **BOTH_WAYS}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "far", far)
    return "far", write_open_clip(tmp_path / "layers", "layer-scale")


def test_backbones_as_they_are_beside_open_clips_own_model(run, open_clips_own, monkeypatch):
    monkeypatch.setitem(TARGETS, "cpu", (Target("onnx", "fp32"),))
    backbones = ",".join(map(str, open_clips_own))
    options = ("--method", "zero-shot", "--compile", "", "--num-frames", "2")
    result, files = run(*options, "--backbone", backbones)
    assert result.exit_code == 0, result.output
    assert files[0].name.startswith("encode-zero-shot-1-thread-")
    assert json.loads(files[0].read_text())["settings"]["backbone"] == "far layers"
    found = rows_of(files)
    for rows in found.values():
        assert [(row["backbone"], row["variant"]) for row in rows] == [
            (name, variant)
            for name in ("far", "layers")
            for variant in (OPEN_CLIP, "ONNX Runtime fp32")
        ]
        assert max(row["off by"] for row in rows) <= 1e-5
    tokens = [(row["tokens"], row["padded to"]) for row in found["query", 1][1::2]]
    assert tokens == [(20, 20), (11, 20)]


def test_a_blip_stands_beside_transformers_own_model(run, tmp_path, monkeypatch):
    """A run of one backbone is named by it; this BLIP is a small one."""
    monkeypatch.setitem(TARGETS, "cpu", (Target("onnx", "fp32"),))
    monkeypatch.setattr(encode_subject, "write_random_blip", write_blip)
    options = ("--method", "zero-shot", "--compile", "", "--num-frames", "2")
    result, files = run(*options, "--backbone", "BLIP-B-384")
    assert result.exit_code == 0, result.output
    assert files[0].name.startswith("encode-zero-shot-blip-b-384-1-thread-")
    for rows in rows_of(files).values():
        assert [row["variant"] for row in rows] == ["transformers", "ONNX Runtime fp32"]
        assert max(row["off by"] for row in rows) <= 1e-5


def test_an_unknown_mode_of_the_compiler_is_wrong_usage():
    assert ",".join(COMPILED) == MODES
    result = CliRunner().invoke(encode, ["--compile", "default,fast"])
    assert result.exit_code == 2
    assert "got fast, known are default,max-autotune." in result.stderr


def test_an_unknown_backbone_is_one_line(tmp_path):
    result = CliRunner().invoke(encode, ["--backbone", "no-such", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: backbone 'no-such'")


def test_threads_of_torch_come_back():
    before = torch.get_num_threads()
    with encode_variants.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_flop_of_a_clip_grow_with_its_frames(backbone):
    def work(num_frames):
        model = encode_subject.make_model(backbone, "dgl-linear", num_frames)
        given = encode_subject.make_inputs(backbone, num_frames, 32).frames
        return encode_subject.work_of(fold(model).clip_encoder, given)

    few, many = work(2), work(4)
    assert 1.5 < many.flop / few.flop < 2
    assert many.weights == pytest.approx(few.weights, rel=1e-3)


def test_weights_count_read_rows_of_the_embedding_only(backbone):
    folded = fold(encode_subject.make_model(backbone, "dgl-linear", 3))
    width, hidden, blocks, embed_dim, constants = 16, 64, 2, 32, 5
    linear = 4 * (width * width + width) + 2 * width * hidden + hidden + width
    block = linear + 4 * width + 2 * constants * width
    rows = 2 * 10 * width  # of the token and the position table
    floats = blocks * block + 2 * width + width * embed_dim + rows
    tokens = encode_subject.make_inputs(backbone, 3, 32).tokens
    assert encode_subject.work_of(folded.text_encoder, tokens).weights == floats


def test_weights_of_open_clips_text_encoder_leave_its_vocabulary_out(tmp_path):
    loaded = encode_subject.load(str(write_open_clip(tmp_path / "layers", "layer-scale")), "", None)
    text, inputs = loaded.text, encode_subject.make_inputs(loaded, 2, 20)
    tables = text.token_embedding.weight.numel() + text.positions.numel()
    numbers = sum(one.numel() for one in text.parameters()) - tables
    work = encode_subject.work_of(PlainTextEncoder(text), inputs.tokens)
    assert work.weights == numbers + 2 * 11 * 32  # a row of either table a token
