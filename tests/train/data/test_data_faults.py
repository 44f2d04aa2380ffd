"""What people do wrong with data sets, as dgl-train, dgl-eval and dgl-data tell them."""

import shutil

import pytest
from click.testing import CliRunner

from dgl_train.commands.data import data
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import train
from dgl_train.data.datasets import read_dataset
from tests.helpers.annotations import write_layout
from tests.helpers.runs import write_run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mine(tmp_path):
    """A csv of one's own; its videos lie in ``videos`` beside it."""
    return write_layout("clips.csv", tmp_path / "mine") / "clips.csv"


@pytest.fixture
def msrvtt(tmp_path):
    return write_layout("msrvtt", tmp_path / "msrvtt")


def invoke(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def error_of(dataset, data_root):
    """The only line that dgl-train prints."""
    trained = invoke(train, "--dataset", dataset, "--data-root", data_root, "--device", "cpu")
    assert trained.exit_code == 1, trained.output
    assert trained.stdout == ""
    return trained.stderr


def edit(path, *changes):
    """A copy of a file with texts replaced once each."""
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    copy = path.with_stem("edited")
    copy.write_text(text)
    return copy


def test_what_spreadsheets_do_to_a_csv_changes_no_clip(mine):
    folder = mine.parent / "videos"
    content = mine.read_bytes()
    assert b"\r\n" in content
    same = {
        "bom.csv": b"\xef\xbb\xbf" + content,
        "unix.csv": content.replace(b"\r\n", b"\n"),
        "CAPITALS.CSV": content,
        "blank.csv": content + b"\r\n\r\n",
        "empty_columns.csv": content.replace(b"\r\n", b",,\r\n").replace(b"end_s,,", b"end_s"),
        "absolute.csv": content.replace(b"take", f"{folder}/take".encode()),
    }
    for name, edited in same.items():
        (mine.parent / name).write_bytes(edited)
        clips = read_dataset(str(mine.parent / name), folder)
        assert clips == read_dataset(str(mine), folder), name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("the ant", " "), " line 2 has no caption. Fill it in."),
        (
            ("the ant", "the ant, running"),
            " line 2 has 5 cells, its header has 4. Put a text that has a comma in double quotation marks.",
        ),
        (
            ("video,caption", "video;caption"),
            " has semicolons between its columns, expected commas. Save it with commas.",
        ),
    ],
)
def test_a_fault_of_a_csv_is_named_with_its_remedy(mine, change, fault):
    path = edit(mine, change)
    assert error_of(path, mine.parent / "videos") == f"Error: {path}{fault}\n"


def test_a_text_that_is_not_utf8_is_named_with_its_remedy(mine):
    mine.write_bytes(mine.read_text().replace("ant", "ânt").encode("latin-1"))
    error = error_of(mine, mine.parent / "videos")
    assert error == (
        f"Error: {mine} line 2 is not text in UTF-8 (byte 0xe2: invalid continuation byte). "
        "Save it as plain text in UTF-8.\n"
    )


def test_a_data_root_that_is_not_there_is_named(mine, msrvtt, tmp_path):
    away = tmp_path / "away"
    fault = f"Error: data root {away} is not a folder. Check --data-root.\n"
    for dataset in (mine, "msrvtt"):
        assert error_of(dataset, away) == fault
        assert invoke(data, "check", dataset, "--data-root", away).stderr == fault


def test_a_data_root_without_videos_names_where_the_first_is_looked_for(mine, msrvtt):
    shutil.rmtree(msrvtt / "videos")
    for dataset, root, first in (
        (mine, mine.parent, "take 00.mp4"),  # its videos are a folder further down
        ("msrvtt", msrvtt, "videos/video0.mp4"),
    ):
        assert error_of(dataset, root) == (
            f"Error: no video of split train is there, of 8; the first is looked for as "
            f"{root / first}. Check --data-root; docs/datasets.md says where videos lie.\n"
        )


def test_a_split_that_is_asked_for_and_not_there_is_named_with_those_that_are(
    mine, msrvtt, tmp_path
):
    path = mine.parent / "untrained.csv"
    path.write_text(mine.read_text().replace(",train,", ",test,"))
    assert error_of(path, mine.parent / "videos") == (
        f"Error: data set {path} has no clips of split 'train'; it has test, val. Choose one of "
        "these, or all.\n"
    )
    asked = ["--dataset", "msrvtt", "--data-root", msrvtt, "--split", "val"]
    assert invoke(evaluate, tmp_path / "run", *asked).stderr == (
        "Error: data set msrvtt has no clips of split 'val'; it has test, train. Choose one of "
        "these, or all.\n"
    )


def test_broken_test_videos_stop_the_evaluation_and_not_the_training(
    msrvtt, backbone_folder, tmp_path
):
    run = write_run(tmp_path / "run", backbone_folder)
    for clip in read_dataset("msrvtt", msrvtt):
        if clip.split == "test":
            clip.video.write_text("no video")
    asked = ["--dataset", "msrvtt", "--data-root", msrvtt, "--device", "cpu"]
    error = invoke(evaluate, run, *asked).stderr
    assert error.startswith("Error: no clip of split test can be read, of 4 videos. The first: ")
    small = [part for text in ("num_frames=2", "max_tokens=24", "num_workers=0", "epochs=1")
             for part in ("--set", text)]  # fmt: skip
    given = [*asked, "--backbone", backbone_folder, *small, "--out", tmp_path / "trained"]
    trained = invoke(train, *given)
    assert trained.exit_code == 0, trained.output
    assert "left out" not in trained.stderr


def test_corrections_leave_broken_held_out_videos_out(msrvtt, backbone_folder, tmp_path):
    run = write_run(tmp_path / "run", backbone_folder)
    train_videos = {c.video for c in read_dataset("msrvtt", msrvtt) if c.split == "train"}
    for video in sorted(train_videos)[2:]:
        video.write_text("no video")
    asked = ["--dataset", "msrvtt", "--data-root", msrvtt, "--device", "cpu", "--post-process"]
    result = invoke(evaluate, run, *asked)
    assert result.exit_code == 0, result.output
    assert "beta chosen on a part held out of train (2 captions)" in result.stdout


def test_a_video_in_two_splits_is_warned_of_by_name(mine, backbone_folder, tmp_path):
    videos = mine.parent / "videos"
    path = edit(mine, ("take 12.mp4", "take 00.mp4"), ("take 13.mp4", "take 01.mp4"))
    asked = ["--dataset", path, "--data-root", videos, "--device", "cpu"]
    warning = (
        f"Warning: 2 videos of split {{}} are in another split too, the first is "
        f"{videos / 'take 00.mp4'}: figures on such videos are too good. Keep each video in one "
        "split.\n"
    )
    planned = invoke(
        train, *asked, "--backbone", backbone_folder, "--set", "max_tokens=24", "--dry-run"
    )
    assert planned.exit_code == 0, planned.output
    assert warning.format("train") in planned.stderr
    run = write_run(tmp_path / "run", backbone_folder)
    assert warning.format("test") in invoke(evaluate, run, *asked).stderr
    assert "Warning" not in invoke(evaluate, run, *asked, "--split", "val").stderr
    checked = invoke(data, "check", path, "--data-root", videos)
    assert checked.exit_code == 0
    assert f"videos in more than one split: 2\n  {videos / 'take 00.mp4'}\n" in checked.stdout
