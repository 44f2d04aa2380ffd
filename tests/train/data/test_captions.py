"""Files of captioned clips as people really save them: nothing is dropped, swallowed or misread in silence."""

import json
import unicodedata

import pytest
from click.testing import CliRunner

from dgl_runtime.errors import ConfigError
from dgl_train.commands.data import data
from dgl_train.commands.train import train
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.data.datasets import read_dataset, shared_videos, warn_of_shared_videos
from tests.helpers.annotations import write_layout
from tests.helpers.tiny import write_tiny_clips


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(tmp_path, content, name="clips.csv", data_root=None):
    """The clips and the notes."""
    path = tmp_path / name
    path.write_bytes(content.encode())
    notes = []
    return read_dataset(str(path), data_root, tell=notes.append), notes


def error_of(tmp_path, content, name="clips.csv"):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content, name)
    return str(caught.value).removeprefix(f"{tmp_path / name} ")


def test_quotation_marks_that_are_not_closed_swallow_no_rows(tmp_path):
    rows = "".join(f'{number}.mp4,"hello he says\n' for number in range(10))
    assert error_of(tmp_path, f"video,caption\n{rows}").startswith(
        "line 2 opens a quotation mark that is closed on line 3 in the middle of a cell."
    )
    # Closed at the end of a cell, further down: no fault of a csv, so it is the break that is refused.
    assert error_of(tmp_path, 'video,caption\na.mp4,x\nb.mp4,"one\nc.mp4,two"\nd.mp4,y\n') == (
        "line 3: caption goes on to line 4. Close its quotation mark on its line; a text may hold line "
        "breaks in a .jsonl file."
    )
    assert error_of(tmp_path, 'video,note,caption\n"a.mp4",x,y\n"b\n.mp4",x,y\n').startswith(
        "line 3: video goes on to line 4."
    )
    clips, notes = read(tmp_path, 'video,note,caption\na,"x\nb,x",y\n')
    assert [clip.caption for clip in clips] == ["y"]
    assert len(notes) == 2
    assert "columns that are not read: 'note'." in notes[0]
    assert "has cells with line breaks, 1 of them; the first goes from line 2 to 3" in notes[1]


def test_line_breaks_of_jsonl_are_told_once(tmp_path):
    rows = [{"video": "a", "caption": f"one{end}two"} for end in (" ", "\n", "\r\n", "\u2028")]
    rows.append({"video": "a", "caption": "three\n"})
    clips, notes = read(tmp_path, "\n".join(map(json.dumps, rows)), "clips.jsonl")
    assert [clip.caption for clip in clips] == [
        "one two", "one\ntwo", "one\r\ntwo", "one\u2028two", "three",
    ]  # fmt: skip
    assert notes == [
        f"{tmp_path}/clips.jsonl has captions with line breaks, 2 of them, the first on line 2; a line "
        "break is read as a space."
    ]


@pytest.mark.parametrize("name", [" split", "Split", "SPLIT\t", '"split "', "\ufeffsplit"])
def test_a_split_by_any_spelling_is_read(tmp_path, name):
    splits = ["train", " Train", "VAL ", "test ", '" Test"']
    rows = "".join(f"{number}.mp4,a,{split}\n" for number, split in enumerate(splits))
    clips, notes = read(tmp_path, f"video,caption,{name}\n{rows}")
    assert [clip.split for clip in clips] == ["train", "train", "val", "test", "test"]
    assert notes == []
    rows = [{"video": "a", "caption": "b", name.strip('"'): split.strip('"')} for split in splits]
    clips, notes = read(tmp_path, "\n".join(map(json.dumps, rows)), "clips.jsonl")
    assert [clip.split for clip in clips] == ["train", "train", "val", "test", "test"]
    assert notes == []


def test_a_value_that_is_none_is_refused_with_its_row(tmp_path):
    assert error_of(tmp_path, "video,caption,split\n\na,b,tst\n") == (
        "line 3: split is 'tst', expected one of train, val, test."
    )
    rows = {
        '{"video": "a", "caption": "b", "split": 1}': "split is 1, expected a text.",
        '{"video": "a", "caption": "b", "end_s": true}': "end_s is True, expected seconds from 0.",
        '{"video": "a", "caption": "b", "end_s": 1e999}': "end_s is inf, expected seconds from 0.",
        f'{{"video": "a", "caption": "b", "end_s": 1{"0" * 400}}}': "end_s is 1000",
        '{"video": "a", "caption": "b", "start_s": "1_0"}': "start_s is '1_0', expected seconds",
        '{"video": "a", "caption": {"b": 1}}': "caption is ",
        '{"video": "a\\u0000", "caption": "b"}': "video is 'a\\x00', which holds a character that no",
        '{"video": "a", "caption": "b\\ud800"}': "caption is 'b\\ud800', which holds a character that no",
    }
    for row, fault in rows.items():
        assert error_of(tmp_path, row, "clips.jsonl").startswith(f"line 1: {fault}")
    # A path that is no text in UTF-8 is written so.
    (clip,), _ = read(
        tmp_path, '{"video": "a\\udcff", "caption": "b", "end_s": " "}', "clips.jsonl"
    )
    assert clip == CaptionedClip(tmp_path / "a\udcff", "b")


def test_columns_that_are_not_read_are_named_on_stderr_once_and_change_no_exit_code(
    tmp_path, backbone_folder
):
    clips = write_tiny_clips(tmp_path / "mine", 16)
    path = tmp_path / "mine" / "clips.csv"
    rows = "".join(f"{clip.video.name},{clip.caption},0,9,x\n" for clip in clips)
    path.write_text(f"video,Caption ,start,end,reversed caption\n{rows}")
    note = (
        f"Note: {path} has columns that are not read: 'start', which looks like start_s; 'end', which "
        "looks like end_s; 'reversed caption', which looks like reversed_caption. Columns that are read "
        "are video, caption, start_s, end_s, split, reversed_caption.\n"
    )
    checked = CliRunner().invoke(data, ["check", str(path)])
    assert (checked.exit_code, checked.stderr) == (0, note)
    assert checked.stdout.endswith("\nEvery video can be used.\n")
    as_json = CliRunner().invoke(data, ["check", str(path), "--json"])
    assert as_json.stderr == note
    found = json.loads(as_json.stdout)
    assert (found["all_usable"], len(found["notes"])) == (True, 1)
    asked = ["--dataset", path, "--device", "cpu", "--backbone", backbone_folder, "--dry-run"]
    planned = CliRunner().invoke(train, [*map(str, asked), "--set", "max_tokens=24"])
    assert planned.exit_code == 0, planned.output
    assert planned.stderr.count("Note: ") == planned.stderr.count(note) == 1
    path.write_text(path.read_text().replace(",start,end,reversed caption", ",start_s,end_s,Split"))
    path.write_text(path.read_text().replace(",x\n", ",\n"))
    checked = CliRunner().invoke(data, ["check", str(path)])
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout.endswith("\nEverything is there.\n")


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("video", "file filename path clip name videos"),
        ("caption", "captions text sentence description title"),
        ("start_s", "start begin from onset start_time"),
        ("end_s", "end stop to until offset end_time"),
        ("split", "subset partition set fold"),
        ("reversed_caption", "reversed reverse backwards"),
    ],
)
def test_names_that_people_use_for_a_column_are_known(tmp_path, key, names):
    for name in names.split():
        row = {"video": "a", "caption": "b", name: "x"}
        row.pop(key, None)
        if key in ("video", "caption"):
            told = error_of(tmp_path, json.dumps(row), "clips.jsonl")
            assert f"({name!r} looks like {key})" in told
        else:
            _, (told,) = read(tmp_path, json.dumps(row), "clips.jsonl")
            assert f"not read: {name!r}, which looks like {key}." in told


def test_columns_of_published_files_are_named_if_they_are_not_as_published(tmp_path):
    root = write_layout("msrvtt", tmp_path / "msrvtt")
    path = root / "annotations" / "MSRVTT_JSFUSION_test.csv"
    before = read_dataset("msrvtt", root)
    text = path.read_text()
    path.write_text(
        text.replace("key,vid_key,video_id,sentence", "Key, vid_key,Video_ID,Sentence ")
    )
    checked = CliRunner().invoke(data, ["check", "msrvtt", "--data-root", str(root)])
    assert (checked.exit_code, checked.stderr) == (1, "")  # fewer than are published
    assert read_dataset("msrvtt", root) == before
    path.write_text(text.replace("key,vid_key", "sentence_id,vid_key"))
    checked = CliRunner().invoke(data, ["check", "msrvtt", "--data-root", str(root)])
    assert checked.stderr == (
        f"Note: {path} has columns that are not read: 'sentence_id'. Columns that are read are video_id, "
        "sentence.\n"
    )
    path.write_text(text.replace(",one", ',"one', 1))
    checked = CliRunner().invoke(data, ["check", "msrvtt", "--data-root", str(root)])
    assert checked.stderr.startswith(
        f"Error: {path} is not as published (line 2 opens a quotation mark that "
    )


@pytest.mark.parametrize("there", ["NFC", "NFD"])
def test_names_are_equal_in_either_form(tmp_path, there):
    asked = {"NFC": "NFD", "NFD": "NFC"}[there]
    clips = write_tiny_clips(tmp_path / "made", 4)
    names = ["größe é.mp4", "über/é.mp4", "a.mp4", "fehlt ü.mp4"]
    folder = tmp_path / unicodedata.normalize(there, "vidéos")
    for clip, name in zip(clips[:3], names, strict=False):
        path = folder / unicodedata.normalize(there, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        clip.video.rename(path)
    rows = "".join(f"{name},a dog\n" for name in names)
    path = tmp_path / "clips.csv"
    path.write_text(unicodedata.normalize(asked, f"video,caption\n{rows}"), encoding="utf-8")
    root = tmp_path / unicodedata.normalize(asked, "vidéos")
    found = read_dataset(str(path), root)
    assert [clip.video.exists() for clip in found] == [True, True, True, False]
    assert found[0].video == folder / unicodedata.normalize(there, names[0])
    (tmp_path / "both.csv").write_text(
        f"video,caption,split\n{unicodedata.normalize('NFC', names[0])},a,train\n"
        f"{unicodedata.normalize('NFD', names[0])},a,test\n",
        encoding="utf-8",
    )
    both = read_dataset(str(tmp_path / "both.csv"), folder)
    assert shared_videos(both, "train") == [found[0].video]


def test_a_published_video_is_found_in_either_form_and_its_captions_too(tmp_path):
    root = write_layout("vatex", tmp_path / "vatex")
    notes = root / "annotations"
    before = read_dataset("vatex", root)
    first = before[0].video
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        for path in (notes / "train_list.txt", notes / "ref_captions.json"):
            text = path.read_text(encoding="utf-8")
            new = "é" + first.stem[1:]
            text = text.replace(first.stem, new) if form == "NFC" else text
            used = form if path.suffix == ".txt" else other
            text = (
                json.dumps(json.loads(text), ensure_ascii=False) if path.suffix == ".json" else text
            )
            path.write_text(unicodedata.normalize(used, text), encoding="utf-8")
        name = first.with_name(unicodedata.normalize(other, "é" + first.name[1:]))
        next(root.glob(f"videos/*{first.name[1:]}")).rename(name)
        after = read_dataset("vatex", root)
        assert [clip.caption for clip in after] == [clip.caption for clip in before]
        assert after[0].video == name
        assert name.exists()


def test_a_missing_video_is_told_with_one_that_differs_in_form_only(tmp_path):
    root = write_layout("vatex", tmp_path / "vatex")
    video = read_dataset("vatex", root)[0].video
    (root / "videos" / "below").mkdir()
    other = video.parent / "below" / video.name.upper()
    video.rename(other)
    checked = CliRunner().invoke(data, ["check", "vatex", "--data-root", str(root)])
    assert checked.exit_code == 1
    assert (
        f"missing videos: 1\n  {video}; there is {other}, whose name differs only in case or in "
        "Unicode's form\n"
    ) in checked.stdout
    (tmp_path / "clips.csv").write_text(f"video,caption\n{other.name.lower()},a\nnone.mp4,a\n")
    asked = ["check", tmp_path / "clips.csv", "--data-root", other.parent, "--json"]
    checked = CliRunner().invoke(data, list(map(str, asked)))
    lower = str(other.with_name(other.name.lower()))
    found = json.loads(checked.stdout)
    assert found["missing"] == [lower, str(other.parent / "none.mp4")]
    assert found["similar"] == {lower: str(other)}
    asked = ["--dataset", tmp_path / "clips.csv", "--data-root", other.parent, "--device", "cpu"]
    assert CliRunner().invoke(train, list(map(str, asked))).stderr == (
        f"Error: no video of split train is there, of 2; the first is looked for as {lower}; there is "
        f"{other}, whose name differs only in case or in Unicode's form. Check --data-root; "
        "docs/datasets.md says where videos lie.\n"
    )


def test_a_video_in_train_and_test_is_warned_of_from_either_side(tmp_path):
    clips, _ = read(
        tmp_path,
        "video,caption,split\na,x,train\nb,x,train\nb,y,test\nc,z,test\na,y,val\nd,x,val\n",
    )
    a, b = tmp_path / "a", tmp_path / "b"
    assert shared_videos(clips, "train") == [a, b]
    assert shared_videos(clips, "test") == [b]
    assert shared_videos(clips, "val") == [a]
    assert shared_videos(clips, "all") == []
    assert warn_of_shared_videos(clips, "all") is None
    assert warn_of_shared_videos(clips, "test") == (
        f"Warning: 1 videos of split test are in another split too, the first is {b}: figures on such "
        "videos are too good. Keep each video in one split."
    )
    assert warn_of_shared_videos([clip for clip in clips if clip.video != b], "test") is None
