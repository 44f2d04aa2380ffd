"""Captioned clips from files, and every fault a file can have."""

import json
from pathlib import Path

import pytest

import dgl_train.data.datasets as datasets
from dgl_runtime.errors import ConfigError
from dgl_train.data.datasets import (
    CaptionedClip,
    read_dataset,
    select_split,
    split_train,
    training_parts,
)
from dgl_train.shapes.clips import make_shapes


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def error_of(path, text, data_root=None):
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_dataset(str(path), data_root)
    return str(caught.value)


def test_csv_with_every_column(folder):
    path = folder / "clips.csv"
    path.write_text(
        "\ufeffvideo,start_s,end_s,caption,split,reversed_caption\n"
        'a.mp4,1.5,3,"a dog, running",val,\n'
        "b.mp4,,,a cat,,a cat backwards\n",
        encoding="utf-8",
    )
    assert read_dataset(str(path)) == [
        CaptionedClip(folder / "a.mp4", "a dog, running", 1.5, 3.0, "val"),
        CaptionedClip(folder / "b.mp4", "a cat", reversed_caption="a cat backwards"),
    ]


def test_times_of_a_table_are_read_as_they_are_written_elsewhere(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "clips.csv"
    path.write_text("video,caption,start_s,end_s\na.mp4,a,0:01,1:00:00.5\na.mp4,b,500ms,1m30s\n")
    found = read_dataset(str(path), folder)
    assert [(clip.start_s, clip.end_s) for clip in found] == [(1.0, 3600.5), (0.5, 90.0)]


def test_rows_without_a_split_beside_others_are_told(folder, tmp_path_factory):
    path, notes = tmp_path_factory.mktemp("captions") / "clips.csv", []
    path.write_text("video,caption,split\na.mp4,a,test\nb.mp4,b,\nb.mp4,c, \n")
    found = read_dataset(str(path), folder, tell=notes.append)
    assert [clip.split for clip in found] == ["test", "train", "train"]
    assert notes == [
        f"{path} has rows without a split, 2 of them, the first on line 3; they are read as train, beside "
        "others that state one."
    ]
    path.write_text("video,caption,split\na.mp4,a,\nb.mp4,b,\n")
    read_dataset(str(path), folder, tell=notes.append)
    assert len(notes) == 1


def test_jsonl_with_videos_elsewhere(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "clips.jsonl"
    rows = [{"video": "a.mp4", "caption": "a dog", "end_s": 3}, {"video": "b.mp4", "caption": "é"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_dataset(str(path), folder) == [
        CaptionedClip(folder / "a.mp4", "a dog", end_s=3.0),
        CaptionedClip(folder / "b.mp4", "é"),
    ]


def test_shapes_are_made_once(tmp_path, monkeypatch):
    made = []

    def make_few(folder):
        made.append(folder)
        make_shapes(folder, num_train=16, num_val=16, num_test=16, progress=False)

    monkeypatch.setattr(datasets, "make_shapes", make_few)
    first, second = (read_dataset("shapes", tmp_path / "shapes") for _ in range(2))
    assert first == second
    assert made == [tmp_path / "shapes"]
    assert [len(select_split(first, split, "shapes")) for split in ("train", "val", "test")] == [
        16, 16, 16,
    ]  # fmt: skip
    assert all(clip.reversed_caption for clip in first)


def test_an_unknown_data_set_names_those_there_are():
    with pytest.raises(ConfigError) as caught:
        read_dataset("msrvt")
    assert str(caught.value) == (
        "data set 'msrvt' is not known. Give shapes, msrvtt, msrvtt-7k, lsmdc, activitynet, didemo, "
        "msvd, vatex, or a file that ends in .csv or .jsonl."
    )


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("a.mp4,a,x,,", "start_s is 'x', expected seconds from 0."),
        ("a.mp4,a,-1,,", "start_s is '-1', expected seconds from 0."),
        ("a.mp4,a,,nan,", "end_s is 'nan', expected seconds from 0."),
        ("a.mp4,a,2,2,", "end_s is 2, expected more than start_s 2."),
        ("a.mp4,a,,,dev", "split is 'dev', expected one of train, val, test."),
    ],
)
def test_a_fault_in_a_row_is_named_with_its_line(folder, row, fault):
    text = f"video,caption,start_s,end_s,split\nb.mp4,b,,,\n{row}\n"
    assert error_of(folder / "clips.csv", text) == f"{folder / 'clips.csv'} line 3: {fault}"


def test_empty_fields_are_named_with_their_line(folder):
    path = folder / "clips.csv"
    assert (
        error_of(path, "video,caption\na.mp4, \n") == f"{path} line 2 has no caption. Fill it in."
    )
    assert error_of(path, "video,caption\n,a dog\n") == f"{path} line 2 has no video. Fill it in."


def test_faults_of_jsonl(folder):
    path = folder / "clips.jsonl"
    assert error_of(path, "[1]\n") == f"{path} line 1 is [1], expected an object."
    assert error_of(path, '\n{"video": \n').startswith(f"{path} line 2 is not JSON: ")
    assert error_of(path, '{"video": "a.mp4", "caption": 3}') == (
        f"{path} line 1: caption is 3, expected a text."
    )
    assert error_of(path, '{"video": "a.mp4", "caption": "a", "end_s": [1]}') == (
        f"{path} line 1: end_s is [1], expected seconds from 0."
    )


def test_missing_columns_are_named(folder):
    path = folder / "clips.csv"
    assert error_of(path, "file,caption\n") == (
        f"{path} has no column video; its first line has file, caption ('file' looks like video). Name the "
        "columns there."
    )
    assert error_of(path, "") == (
        f"{path} has no column video and no column caption; its first line has nothing. "
        "Name the columns there."
    )


def test_a_file_without_clips_or_that_cannot_be_read(folder):
    path = folder / "clips.csv"
    assert error_of(path, "video,caption\n") == (
        f"data set {path} has no clips. Give one row for each caption."
    )
    with pytest.raises(ConfigError, match=r"absent\.csv cannot be read: .*No such file"):
        read_dataset(str(folder / "absent.csv"))
    path.write_bytes(b"video,caption\n\xff\xfe,a\n")
    with pytest.raises(ConfigError, match=r"clips\.csv line 2 is not text in UTF-8 \(byte 0xff"):
        read_dataset(str(path))


def test_rows_whose_video_is_missing_are_read_like_others(folder):
    path = folder / "clips.csv"
    path.write_text("video,caption\na.mp4,a dog\nnowhere.mp4,a cat\n")
    assert read_dataset(str(path)) == [
        CaptionedClip(folder / "a.mp4", "a dog"),
        CaptionedClip(folder / "nowhere.mp4", "a cat"),
    ]


def test_an_absent_split_names_those_there_are():
    clips = [CaptionedClip(Path("a"), "a"), CaptionedClip(Path("b"), "b", split="val")]
    assert select_split(clips, "all", "mine") == clips
    with pytest.raises(ConfigError) as caught:
        select_split(clips, "test", "mine")
    assert str(caught.value) == (
        "data set mine has no clips of split 'test'; it has train, val. Choose one of these, or all."
    )


def test_held_out_clips_share_no_video_with_the_others():
    clips = [CaptionedClip(Path(f"{n % 10}.mp4"), f"caption {n}") for n in range(40)]
    train, val = split_train(clips, fraction=0.2, seed=1)
    assert sorted(clip.caption for clip in train + val) == sorted(clip.caption for clip in clips)
    assert len({clip.video for clip in val}) == 2
    assert not {clip.video for clip in val} & {clip.video for clip in train}
    assert split_train(clips[::-1], fraction=0.2, seed=1)[1] == val[::-1]
    assert split_train(clips, fraction=0.2, seed=2)[1] != val


def test_at_least_one_video_is_on_either_side():
    clips = [CaptionedClip(Path(name), name) for name in "ab"]
    for fraction in (0.01, 0.99):
        assert [len(part) for part in split_train(clips, fraction=fraction, seed=0)] == [1, 1]
    with pytest.raises(ConfigError, match="come from 1 video, expected 2 or more"):
        split_train(clips[:1], fraction=0.5, seed=0)


def test_a_val_split_is_used_where_there_is_one():
    clips = [CaptionedClip(Path(name), name) for name in "abc"]
    val = CaptionedClip(Path("d"), "d", split="val")
    assert training_parts([*clips, val], "mine", fraction=0.3, seed=0) == (clips, [val])
    assert [len(part) for part in training_parts(clips, "mine", fraction=0.3, seed=0)] == [2, 1]
