"""The public data sets, read from files in their published layout; the real files where they are."""

import os
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dgl_runtime.errors import ConfigError
from dgl_runtime.tables.text_files import read_list
from dgl_train.data.datasets import read_dataset, training_parts
from dgl_train.data.published import (
    PUBLISHED,
    activitynet_ids,
    activitynet_paragraphs,
    lsmdc_rows,
    msrvtt_ids,
    msrvtt_test,
    read_captions,
    several_captions,
)
from tests import ROOT
from tests.helpers.annotations import videos_of, write_layout

ROWS = {
    "msrvtt": {"train": 16, "test": 4},
    "msrvtt-7k": {"train": 16, "test": 4},
    "lsmdc": {"train": 8, "val": 4, "test": 4},
    "activitynet": {"train": 8, "test": 4},
    "didemo": {"train": 8, "val": 4, "test": 4},
    "msvd": {"train": 24, "val": 12, "test": 12},
    "vatex": {"train": 16, "test": 8},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return {name: write_layout(name, folder / name) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_split_is_read_and_every_video_found(roots, name):
    clips = read_dataset(name, roots[name])
    assert Counter(clip.split for clip in clips) == ROWS[name]
    assert sorted({clip.video for clip in clips}) == videos_of(roots[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_validation_never_sees_the_test_split(roots, name):
    clips = read_dataset(name, roots[name])
    train, val = training_parts(clips, name, fraction=0.25, seed=0)
    tested = {clip.video for clip in clips if clip.split == "test"}
    assert train
    assert val
    assert not tested & {clip.video for clip in [*train, *val]}
    assert not {clip.video for clip in train} & {clip.video for clip in val}


def test_sizes_are_those_of_the_documentation():
    """The documentation was written from the publications; ``dgl-data check`` compares with ours."""
    text = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| \[`([\w-]+)`\]\S* \| (.*?) \|$", text, re.MULTILINE))
    assert documented.keys() == PUBLISHED.keys()
    for name, row in documented.items():
        cells = dict(zip(("train", "val", "test"), row.split(" | "), strict=False))
        expected = PUBLISHED[name].expected
        assert expected.keys() == {split for split, cell in cells.items() if cell != "-"}, name
        for split, counts in expected.items():
            number = r"([\d,]+) (videos|captions|pairs)"
            said = {
                what: int(count.replace(",", ""))
                for count, what in re.findall(number, cells[split])
            }
            assert said or cells[split] == "not checked"
            pairs = said.get("pairs")
            assert counts.videos == said.get("videos", pairs), (name, split)
            assert counts.captions == said.get("captions", pairs), (name, split)
    without = re.search(r"(\d+) train ids of 10,024 and (\d+) val1 ids", text)
    for split, count in zip(("train", "test"), without.groups(), strict=True):
        assert PUBLISHED["activitynet"].expected[split].ids_without_captions == int(count)
    others = [one.expected.values() for name, one in PUBLISHED.items() if name != "activitynet"]
    assert not any(counts.ids_without_captions for sizes in others for counts in sizes)


def first_test_clip(roots, name):
    return next(clip for clip in read_dataset(name, roots[name]) if clip.split == "test")


def test_captions_are_read_as_published(roots):
    captions = {name: first_test_clip(roots, name).caption for name in PUBLISHED}
    assert captions == {
        "msrvtt": "one ant",
        "msrvtt-7k": "one ant",
        "lsmdc": 'SOMEONE says "elk',  # an open quotation mark does not swallow the next row
        "activitynet": "The ant. It ends.",  # a paragraph, spaces made one
        "didemo": "the elk it ends",
        "msvd": "a elk",
        "vatex": "A ant.",
    }


def test_only_didemo_ends_before_its_videos_do(roots):
    for name in PUBLISHED:
        clip = first_test_clip(roots, name)
        assert (clip.start_s, clip.end_s) == (None, 30.0 if name == "didemo" else None)


def test_msvd_and_vatex_have_several_captions_a_clip(roots):
    for name in PUBLISHED:
        places = Counter(c.place for c in read_dataset(name, roots[name]) if c.split == "test")
        assert several_captions(name) == (max(places.values()) > 1), name
    assert not several_captions("clips.csv")


def test_an_id_without_a_caption_is_known_and_left_out(roots):
    captions = read_captions("activitynet", roots["activitynet"])
    assert captions["test"]["v_no_caption_test"] == []
    clips = read_dataset("activitynet", roots["activitynet"])
    assert not [clip for clip in clips if "no_caption" in clip.video.name]


def test_a_missing_video_stands_where_it_should_be(tmp_path):
    root = write_layout("activitynet", tmp_path / "set")
    videos_of(root)[0].unlink()
    (gone,) = [c for c in read_dataset("activitynet", root) if not c.video.exists()]
    assert gone.video.parent == root / "videos"
    assert gone.video.suffix == ".mp4"


def test_files_may_lie_in_the_data_root_itself(tmp_path):
    root = write_layout("vatex", tmp_path / "set")
    before = read_dataset("vatex", root)
    for path in [*(root / "annotations").iterdir(), *videos_of(root)]:
        path.rename(root / path.name)
    (root / "annotations").rmdir()
    (root / "videos").rmdir()
    after = read_dataset("vatex", root)
    assert [clip.caption for clip in after] == [clip.caption for clip in before]
    assert {clip.video.parent for clip in after} == {root}


def test_of_several_files_with_one_name_the_first_counts(tmp_path):
    root = write_layout("vatex", tmp_path / "set")
    for folder in ("zz", "aa", "mm"):
        (root / folder).mkdir()
        (root / folder / "train_list.txt").write_text(folder)
    (root / "annotations" / "train_list.txt").rename(root / "train_list.txt.kept")
    assert list(read_captions("vatex", root)["train"]) == ["aa"]
    (root / "train_list.txt.kept").rename(root / "train_list.txt")
    assert len(read_captions("vatex", root)["train"]) == 8


def test_videos_are_those_below_the_folder_of_that_name_and_not_behind_links(tmp_path):
    root = write_layout("vatex", tmp_path / "set")
    first, second = videos_of(root)[:2]
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / first.name).touch()
    shutil.move(second, root / "elsewhere")
    (root / "videos" / "link").symlink_to(root / "elsewhere")
    clips = read_dataset("vatex", root)
    assert {clip.video for clip in clips if clip.video.stem == first.stem} == {first}
    assert {clip.video.parent for clip in clips} == {root / "videos"}
    assert not second.exists()


def test_stems_keep_their_case_and_extensions_do_not(tmp_path):
    root = write_layout("vatex", tmp_path / "set")
    upper, lower = videos_of(root)[:2]
    upper.rename(upper.with_suffix(".MP4"))
    lower.rename(lower.with_name(lower.name.lower()))
    there = [clip.video.exists() for clip in read_dataset("vatex", root)]
    assert there[:4] == [True, True, False, False]


@pytest.mark.parametrize(
    ("video_id", "stems"),
    [("1@N03_2.avi", ("1@N03_2", "1@N03_2.avi")), ("1@N03.2", ("1@N03.2", "1@N03.2"))],
)
def test_a_video_of_didemo_may_have_been_converted(video_id, stems):
    assert PUBLISHED["didemo"].stems(video_id) == stems


def test_columns_are_told_that_are_neither_read_nor_published(tmp_path, capsys):
    root = write_layout("msrvtt", tmp_path / "set")
    read_captions("msrvtt", root)
    assert capsys.readouterr().err == ""
    (root / "annotations/MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence,url\nret0,msr0,video0,an elk,x\n"
    )
    assert read_captions("msrvtt", root)["test"] == {"video0": ["an elk"]}
    assert "columns that are not read: 'url'" in capsys.readouterr().err


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_annotation_file_is_named_with_where_it_was_looked_for(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        read_dataset(name, tmp_path)
    assert f"is missing: it is neither in {tmp_path} nor in a folder there" in str(caught.value)
    assert "docs/datasets.md" in str(caught.value)


def test_a_data_root_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="data set msvd is read from its folder, and none is"):
        read_dataset("msvd")
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        read_dataset("msvd", tmp_path / "nowhere")


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_layout("msvd", tmp_path / "set")
    (root / "annotations/raw-captions.pkl").write_bytes(pickle.dumps({"a": [[Trap()]]}))
    with pytest.raises(ConfigError, match=r"not as published .*expected plain containers"):
        read_dataset("msvd", root)
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("msrvtt", "MSRVTT_data.json", '{"videos": []}'),
        ("msrvtt", "MSRVTT_data.json", '{"sentences": [{"video_id": 1, "caption": "a"}]}'),
        ("msrvtt", "MSRVTT_train.9k.csv", "id\nvideo0\n"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "key,video_id,sentence\nret0,video0\n"),
        ("lsmdc", "LSMDC16_annos_val.csv", "a,0,0,0,0,a comma is no tab\n"),
        ("activitynet", "val_ids.json", '"v_a"'),
        ("activitynet", "val_1.json", '{"v_a": {"sentences": "one"}}'),
        ("activitynet", "train.json", '{"v_a": '),
        ("didemo", "val_data.json", '[{"video": "a.avi"}]'),
        ("msvd", "raw-captions.pkl", "no pickle"),
        ("vatex", "ref_captions.json", '{"a": "one caption"}'),
        ("vatex", "ref_captions.json", '{"a": ["one caption", 2]}'),
        ("vatex", "ref_captions.json", '{"a": {"one": "caption"}}'),
    ],
)
def test_a_file_that_is_not_as_published_is_named(tmp_path, name, file, content):
    root = write_layout(name, tmp_path / "set")
    (root / "annotations" / file).write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_dataset(name, root)
    assert str(caught.value).startswith(f"{root / 'annotations' / file} is not as published (")


def test_what_is_not_as_published_is_told_in_one_line(tmp_path):
    root = write_layout("msrvtt", tmp_path / "set")
    path = root / "annotations" / "MSRVTT_train.9k.csv"
    for content, reason in {
        "id\nvideo0\n": "has no column video_id; its first line has id. Name the columns there",
        "video_id\nvideo0,x\n": "line 2 has 2 cells, its header has 1. Put a text that has a comma in "
        "double quotation marks",
    }.items():
        path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            read_dataset("msrvtt", root)
        assert str(caught.value) == (
            f"{path} is not as published ({reason}). Get it again; docs/datasets.md says where."
        )
    lsmdc = write_layout("lsmdc", tmp_path / "lsmdc")
    path = lsmdc / "annotations" / "LSMDC16_annos_val.csv"
    path.write_text("a\t0\t0\t0\t0\tone\nb\t0\t0\t0\t0\ttwo\tthree\n")
    with pytest.raises(
        ConfigError, match=r"published \(ValueError: line 2 has 7 columns, expected 6\)\. Get it"
    ):
        read_dataset("lsmdc", lsmdc)
    path = root / "annotations" / "MSRVTT_data.json"
    path.write_text("[" * 100_000)
    with pytest.raises(
        ConfigError, match=r"is not as published \(RecursionError: maximum recursion"
    ):
        read_dataset("msrvtt", root)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # its first bytes are an error to whoever reads them
    with pytest.raises(ConfigError) as caught:
        read_dataset("msrvtt", root)
    assert str(caught.value) == f"{path} cannot be read: Input/output error. Check it."


@pytest.fixture(scope="module")
def real():
    """The folder of the real annotation files, a folder for each set."""
    if "DGL_ANNOTATIONS" not in os.environ:
        pytest.skip("DGL_ANNOTATIONS does not name a folder with the published annotation files")
    return Path(os.environ["DGL_ANNOTATIONS"])


@pytest.mark.parametrize(("size", "name"), [("9k", "msrvtt"), ("7k", "msrvtt-7k")])
def test_msrvtt_as_published(real, size, name):
    expected = PUBLISHED[name].expected
    train = msrvtt_ids(real / f"msrvtt/MSRVTT_train.{size}.csv")
    test = msrvtt_test(real / "msrvtt/MSRVTT_JSFUSION_test.csv")
    assert len(set(train)) == len(train) == expected["train"].videos
    assert len(test) == sum(map(len, test.values())) == expected["test"].videos == 1000
    assert not set(train) & set(test)


def test_lsmdc_as_published(real):
    rows = lsmdc_rows(real / "lsmdc/LSMDC16_challenge_1000_publictect.csv")
    assert len(rows) == sum(map(len, rows.values())) == PUBLISHED["lsmdc"].expected["test"].videos


def test_activitynet_as_published(real):
    expected = PUBLISHED["activitynet"].expected
    ids = activitynet_ids(real / "activitynet/val_ids.json")
    captions = activitynet_paragraphs(real / "activitynet/val_1.json")
    assert len(set(ids)) == 4926
    assert len(set(ids) & set(captions)) == expected["test"].captions == 4917
    assert len(set(ids) - set(captions)) == expected["test"].ids_without_captions
    train = expected["train"]
    assert len(activitynet_ids(real / "activitynet/train_ids.json")) == 10_024
    assert train.videos + train.ids_without_captions == 10_024


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_msvd_as_published(real, split):
    ids = read_list(real / f"msvd/{split}_list.txt")
    assert len(set(ids)) == len(ids) == PUBLISHED["msvd"].expected[split].videos
