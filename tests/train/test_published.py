"""The public data sets, read from files in their published layout; the real files where they are."""

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from annotations import videos_of, write_layout

from dgl_runtime.errors import ConfigError
from dgl_runtime.text_files import read_list
from dgl_train.datasets import read_dataset, training_parts
from dgl_train.published import (
    PUBLISHED,
    activitynet_ids,
    activitynet_paragraphs,
    lsmdc_rows,
    msrvtt_ids,
    msrvtt_test,
    read_captions,
    several_captions,
)

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


def test_stems_keep_their_case_and_extensions_do_not(tmp_path):
    root = write_layout("vatex", tmp_path / "set")
    upper, lower = videos_of(root)[:2]
    upper.rename(upper.with_suffix(".MP4"))
    lower.rename(lower.with_name(lower.name.lower()))
    there = [clip.video.exists() for clip in read_dataset("vatex", root)]
    assert there[:4] == [True, True, False, False]


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
    ],
)
def test_a_file_that_is_not_as_published_is_named(tmp_path, name, file, content):
    root = write_layout(name, tmp_path / "set")
    (root / "annotations" / file).write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_dataset(name, root)
    assert str(caught.value).startswith(f"{root / 'annotations' / file} is not as published (")


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
