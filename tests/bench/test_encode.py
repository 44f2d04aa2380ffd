import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encode
from benchmarks.cli import bench
from benchmarks.encode import COMPILED, FOLDED, ONNX, UNFOLDED, block_flop
from dgl_export.fold import fold
from dgl_train.vocabulary import clip_tokenizer

METHODS = ["dgl-linear", "dgl-transformer"]


@pytest.fixture
def run(backbone_folder, small_peaks, tmp_path):
    def invoke(*options):
        fixed = ["encode", "--backbone", str(backbone_folder), "--rounds", "2", "--threads", "1"]
        result = CliRunner().invoke(bench, [*fixed, "--out", str(tmp_path / "out"), *options])
        return result, sorted((tmp_path / "out").iterdir())

    return invoke


def test_every_row_is_measured_and_written(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # seconds sooner
    result, files = run("--num-frames", "3")
    assert result.exit_code == 0, result.output
    assert [path.suffix for path in files] == [".json", ".md"]
    assert result.stdout == files[1].read_text()
    document = json.loads(files[0].read_text())
    assert document["settings"]["backbone"] == "backbone"  # a folder's path is nobody's business
    assert document["settings"]["caption_tokens"] == 11
    assert document["settings"]["padded_tokens"] == 32
    found = [(one["method"], one["task"]) for one in document["series"]]
    assert found == [(method, task) for method in METHODS for task in ("query", "clip")]
    for one in document["series"]:
        assert [row["variant"] for row in one["rows"]] == [UNFOLDED, FOLDED, COMPILED, ONNX]
        assert all(len(row["times_ms"]) == 2 for row in one["rows"])
        assert all(row["max_abs"] <= 1e-5 for row in one["rows"])
        assert all(row["variant"] in result.stdout for row in one["rows"])
        assert one["flop"] > 0
        assert one["weight_bytes"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_one_method_without_compilation_on_one_frame(run, method):
    result, files = run("--method", method, "--no-compile", "--num-frames", "1")
    assert result.exit_code == 0, result.output
    series = json.loads(files[0].read_text())["series"]
    assert [one["method"] for one in series] == [method, method]
    assert [row["variant"] for row in series[0]["rows"]] == [UNFOLDED, FOLDED, ONNX]


@pytest.fixture
def stand_in(monkeypatch):
    """Folded torch in place of ONNX Runtime, whose export takes seconds."""

    def use(change=lambda task, embedding: embedding):
        def calls(folded, method, inputs, place):
            query = encode.torch_call(folded.captions, inputs.tokens)
            clip = encode.torch_call(folded.clips, inputs.frames)
            return {
                "query": lambda: change("query", query()),
                "clip": lambda: change("clip", clip()),
            }

        monkeypatch.setattr(encode, "onnx_calls", calls)

    return use


def test_a_missing_compiler_is_told_in_the_row(run, stand_in, monkeypatch):
    stand_in()

    def compile_nothing(encoder, **_):
        def call(values):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in (None, '/x')")

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    result, files = run("--method", "dgl-linear", "--num-frames", "2")
    assert result.exit_code == 0, result.output
    assert f"{COMPILED}: not measured, no C++ compiler" in result.stdout
    for one in json.loads(files[0].read_text())["series"]:
        row = next(row for row in one["rows"] if row["variant"] == COMPILED)
        assert row["failure"].startswith("not measured, no C++ compiler")
        assert "times_ms" not in row


def test_other_failures_of_the_compiler_name_no_folder():
    error = RuntimeError("CppCompileError: /home/someone/x.cpp is broken\nmore")
    assert encode._reason(error) == "not measured, CppCompileError: ... is broken"


@pytest.mark.parametrize("task", ["query", "clip"])
@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_a_wrong_variant_fails_and_writes_nothing(run, stand_in, task, wrong):
    stand_in(lambda which, embedding: embedding + wrong if which == task else embedding)
    result, files = run("--method", "dgl-linear", "--no-compile", "--num-frames", "2")
    assert result.exit_code == 1
    assert files == []
    assert result.stdout == ""
    assert f"Error: dgl-linear, {task}: 'ONNX Runtime, folded' differs" in result.stderr


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
    folded = fold(model, start_token=clip_tokenizer().start_id)
    works = {
        folded.captions: (inputs.tokens, encode.caption_work(backbone, folded, pieces=10)),
        folded.clips: (inputs.frames, encode.clip_work(backbone, folded, 3)),
    }
    for encoder, (values, work) in works.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(values)
        assert work.flop == counter.get_total_flops()


def test_weight_bytes_count_read_rows_of_the_embedding_only(backbone):
    folded = fold(encode.make_model(backbone, "dgl-linear", 3), start_token=49406)
    width, hidden, blocks, embed_dim, constants = 16, 64, 2, 32, 5
    linear = 4 * (width * width + width) + 2 * width * hidden + hidden + width
    block = linear + 4 * width + 2 * constants * width
    rows = 2 * 10 * width  # of the token and the position table
    floats = blocks * block + 2 * width + width * embed_dim + rows
    assert encode.caption_work(backbone, folded, pieces=10).weight_bytes == 4 * floats
