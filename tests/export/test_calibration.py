"""Calibration as a user gives it: folders, csv files, damage; and refusals that leave nothing."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner

from dgl_export import calibration, quality
from dgl_export.calibration import FEWEST, read_calibration
from dgl_export.cli import export
from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.errors import ConfigError, ExportError, MediaError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from tests.helpers.odd_videos import truncate, write_video
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import write_tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES

FORM = frame_spec(NUM_FRAMES, 16)
WORDS = "ant bee cat dog elk fox gnu hen ibis jay".split()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(10):
        write_video(folder / f"video{number}.mp4", 12 + number)
    return folder


def write_csv(path, videos, splits):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption", "split"])
        for number, split in enumerate(splits):
            rows.writerow([videos / f"video{number}.mp4", WORDS[number], split])
    return path


def read(source):
    return read_calibration(str(source), None, FORM, clip_tokenizer(20))


def test_a_folder_of_videos_is_split_and_asked_for_by_made_sentences(videos):
    both = read(videos)
    assert both.calibrates.frames.shape == both.judges.frames.shape == (5, NUM_FRAMES, 3, 16, 16)
    assert both.judges.answers is None
    assert len(both.judges.tokens) == 32


def test_captioned_clips_judge_recall_too(videos, tmp_path):
    both = read(write_csv(tmp_path / "clips.csv", videos, ["val"] * 10))
    assert both.judges.answers.tolist() == [0, 1, 2, 3, 4]
    tokens = clip_tokenizer(20)(WORDS)
    for half, expected in ((both.judges, tokens[1::2]), (both.calibrates, tokens[::2])):
        np.testing.assert_array_equal(half.tokens.ids, expected.ids)
        np.testing.assert_array_equal(half.tokens.lengths, expected.lengths)


def test_validation_clips_come_before_training_clips_and_test_clips_are_never_used(
    videos, tmp_path
):
    mixed = write_csv(tmp_path / "mixed.csv", videos, ["train", *["val"] * 8, "test"])
    both = read(mixed)
    assert len(both.calibrates.frames) + len(both.judges.frames) == 8
    only_test = write_csv(tmp_path / "test.csv", videos, ["test"] * 10)
    with pytest.raises(ExportError, match="has test clips only"):
        read(only_test)


def test_of_many_clips_some_are_taken_evenly(videos, monkeypatch):
    monkeypatch.setattr(calibration, "MOST", 8)
    both = read(videos)
    assert len(both.calibrates.frames) + len(both.judges.frames) == 8


def test_damaged_videos_are_named_and_left_out(videos, tmp_path, capsys):
    broken = write_video(tmp_path / "broken.mp4", 12)
    truncate(broken, 0.3)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for number in range(FEWEST):
        (tmp_path / f"video{number}.mp4").symlink_to(videos / f"video{number}.mp4")
    both = read(tmp_path)
    assert len(both.calibrates.frames) + len(both.judges.frames) == FEWEST
    told = capsys.readouterr().err
    assert "Left out: " in told
    assert "broken.mp4" in told
    assert "empty.mp4 is empty" in told


def test_too_few_clips_are_refused(videos, tmp_path):
    for number in range(FEWEST):
        if number:
            with pytest.raises(
                ExportError, match=rf"has {number} clips .* \(of {number}\); at least 8"
            ):
                read(tmp_path)
        (tmp_path / f"video{number}.mp4").symlink_to(videos / f"video{number}.mp4")
    assert read(tmp_path)


def test_what_is_no_calibration_set_is_refused(tmp_path):
    with pytest.raises(MediaError, match="No video found"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="is not known"):
        read(tmp_path / "absent")


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    backbone = load_backbone(BackboneSource(str(write_tiny_backbone(folder / "backbone"))))
    settings = ModelSettings("dgl-linear", PromptCounts(), NUM_FRAMES, 20)
    save_checkpoint(folder / "best.safetensors", build_model(backbone, settings))
    return folder


def run(*arguments):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_int8_from_a_folder_of_videos(checkpoint, videos, tmp_path, monkeypatch):
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 0)  # to random weights all clips are alike
    out = tmp_path / "bundle"
    arguments = ("--ckpt", checkpoint, "--precision", "int8", "--calibrate", videos)
    result = run(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert "on 32 captions and 5 clips held out: smallest cosine 0.99" in result.stdout
    assert Bundle(out).manifest.precision == "int8"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ("--precision", "int8"),
            "--precision int8 needs --calibrate: a folder of videos, or a csv",
        ),
        (("--format", "trt", "--precision", "fp8"), "--precision fp8 needs --calibrate"),
        (("--precision", "fp8"), "--format onnx --precision fp8 is not written; onnx: fp32, fp16"),
        (("--format", "openvino", "--precision", "fp16"), "openvino: fp32, bf16, int8;"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    checkpoint, tmp_path, arguments, fault
):
    result = run("--ckpt", tmp_path / "absent", *arguments, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert fault in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_empty_calibration_folder_leaves_nothing(checkpoint, tmp_path):
    (tmp_path / "none").mkdir()
    arguments = ("--ckpt", checkpoint, "--precision", "int8", "--calibrate", tmp_path / "none")
    result = run(*arguments, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "No video found" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["none"]
