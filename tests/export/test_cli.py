"""dgl-export as a user meets it."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from dgl_export.cli import export
from dgl_runtime import Retriever
from dgl_runtime.errors import ExportError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from tests.golden.reference import Case
from tests.helpers.tiny import write_tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES

pytestmark = pytest.mark.slow


def run(*arguments):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    backbone = load_backbone(BackboneSource(str(write_tiny_backbone(folder / "backbone"))))
    settings = ModelSettings("dgl-linear", PromptCounts(), NUM_FRAMES, 20)
    save_checkpoint(folder / "best.safetensors", build_model(backbone, settings))
    return folder


def test_a_run_becomes_a_bundle(checkpoint, tmp_path):
    result = run("--ckpt", checkpoint, "--format", "onnx", "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert "100% of 9 rankings equal" in result.stdout
    retriever = Retriever(tmp_path / "bundle")
    assert (retriever.num_frames, retriever.tokenizer.spec.max_tokens) == (NUM_FRAMES, 20)
    assert retriever.bundle.manifest.source.checkpoint_sha256


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--num-frames", 5, "--max-tokens", 10), (5, 10)),
        (("--zero-shot", "--max-tokens", 24), (NUM_FRAMES, 24)),
    ],
)
def test_frames_and_tokens_of_a_run(checkpoint, tmp_path, options, expected):
    result = run("--ckpt", checkpoint, *options, "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    manifest = Retriever(tmp_path / "bundle").bundle.manifest
    assert (manifest.inputs.frames.num_frames, manifest.inputs.texts.max_tokens) == expected
    assert manifest.source.method == ("zero-shot" if "--zero-shot" in options else "dgl-linear")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), (12, 24)),  # as many tokens as the backbone reads
        (("--num-frames", 5, "--max-tokens", 20), (5, 20)),
    ],
)
def test_frames_and_tokens_of_a_backbone_alone(checkpoint, tmp_path, options, expected):
    backbone = ("--zero-shot", "--backbone", checkpoint / "backbone")
    result = run(*backbone, *options, "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    retriever = Retriever(tmp_path / "bundle")
    assert (retriever.num_frames, retriever.tokenizer.spec.max_tokens) == expected


def test_random_weights_are_told(tmp_path, monkeypatch):
    def stop(*_):
        raise ExportError("here the export would begin")

    monkeypatch.setattr("dgl_export.bundle_writer.write_bundle", stop)
    result = run("--zero-shot", "--backbone", "PE-Core-T-16-384", "--out", tmp_path / "bundle")
    told, ended = result.stderr.splitlines()
    assert told.startswith("Random weights: no --pretrained was given")
    assert told.endswith("Tags of PE-Core-T-16-384: meta.")
    assert ended == "Error: here the export would begin"


def test_bad_input_is_one_line(checkpoint, tmp_path):
    other = write_tiny_backbone(tmp_path / "other", seed=5)
    flawed = tmp_path / "flawed.safetensors"
    flawed.write_bytes(b"\0" * 100)
    (tmp_path / "text.pth.tar").write_text("not a checkpoint")
    out = ("--out", tmp_path / "bundle")
    expected = {
        ("--ckpt", tmp_path / "absent"): "does not exist",
        ("--ckpt", flawed): "not a readable safetensors file",
        ("--ckpt", tmp_path / "text.pth.tar"): "not a torch checkpoint",
        ("--zero-shot", "--backbone", "ViT-Z-99"): "does not load",
        ("--zero-shot", "--backbone", "roberta-ViT-B-32"): "is built by the library transformers",
    }
    for arguments, message in expected.items():
        result = run(*arguments, *out)
        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "bundle").exists()
    assert run("--ckpt", checkpoint, "--backbone", other, *out).exit_code == 2
    assert run("--backbone", other, *out).exit_code == 2
    assert run("--ckpt", checkpoint, *out, "--data-root", tmp_path).exit_code == 2
    assert run("--ckpt", checkpoint, *out, "--pretrained", "openai").exit_code == 2
    weights = ("--zero-shot", "--backbone", other, "--pretrained", flawed)
    assert "--pretrained goes with --backbone NAME alone" in run(*weights, *out).stderr
    assert run("--ckpt", checkpoint, *out, "--calibrate", tmp_path).exit_code == 2
    low = ("--precision", "fp16", "--calibrate", tmp_path)
    assert run("--ckpt", checkpoint, *out, *low, "--data-root", tmp_path).exit_code == 2


def test_what_would_fail_at_the_end_fails_at_once(tmp_path, monkeypatch):
    absent = ("--ckpt", tmp_path / "absent", "--out")
    assert f"{tmp_path} exists already" in run(*absent, tmp_path).stderr
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    missing = run(*absent, "b", "--format", "trt")
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    assert "needs the Python module tensorrt" in missing.stderr
    assert "pip install 'dgl-retrieval[trt]'" in missing.stderr
    monkeypatch.setattr("dgl_runtime.engines.installed.is_installed", lambda name: False)
    assert "openvino' needs" in run(*absent, "b", "--format", "openvino").stderr


def test_a_command_that_is_ended_leaves_nothing(checkpoint, tmp_path):
    program = (
        "import os, signal, dgl_export.bundle_writer as w; "
        "w._fill = lambda *given: os.kill(os.getpid(), signal.SIGTERM); "
        "from dgl_export.cli import export; export()"
    )
    arguments = ["--ckpt", checkpoint, "--out", tmp_path / "bundle"]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True)
    assert (ended.returncode, ended.stderr) == (143, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_backbone_is_refused(checkpoint, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(checkpoint, copy)
    header_names = checkpoint / "backbone"
    moved = tmp_path / "kept"
    shutil.move(header_names, moved)
    try:
        write_tiny_backbone(header_names, seed=7)
        result = run("--ckpt", copy, "--out", tmp_path / "bundle")
    finally:
        shutil.rmtree(header_names)
        shutil.move(moved, header_names)
    assert result.exit_code == 1
    assert "was trained on a backbone with sha256" in result.stderr


def test_a_research_checkpoint_becomes_a_bundle(tmp_path):
    checkpoint = Case("a_linear").write_checkpoint(tmp_path)
    result = run("--ckpt", checkpoint, "--num-frames", 6, "--out", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert Retriever(tmp_path / "bundle").bundle.manifest.source.method == "dgl-linear"
