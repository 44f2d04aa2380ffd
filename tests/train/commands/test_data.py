"""dgl-data check: counts beside the published ones, faults by name, an exit code, nothing changed."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from dgl_train.commands.data import data
from dgl_train.data.published import PUBLISHED, Counts
from tests.helpers.annotations import damage_twenty, videos_of, write_layout
from tests.helpers.tiny import write_tiny_clips


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(name, *options):
    result = CliRunner().invoke(data, ["check", *map(str, (name, *options))])
    return result.exit_code, result.output


def check_json(name, *options):
    code, output = check(name, *options, "--json")
    return code, json.loads(output)


@pytest.fixture
def mine(tmp_path):
    """A csv of 16 good clips in a folder of their own."""
    clips = write_tiny_clips(tmp_path / "mine", 16)
    rows = "".join(f"{clip.video.name},{clip.caption}\n" for clip in clips)
    (tmp_path / "mine/clips.csv").write_text(f"video,caption\n{rows}")
    return tmp_path / "mine/clips.csv"


@pytest.fixture
def msvd(tmp_path, monkeypatch):
    """A small msvd, as large as the published one."""
    counts = {"train": Counts(8, 24), "val": Counts(4), "test": Counts(4, 12)}
    small = dataclasses.replace(PUBLISHED["msvd"], expected=counts)
    monkeypatch.setitem(PUBLISHED, "msvd", small)
    return write_layout("msvd", tmp_path / "msvd")


def test_a_whole_data_set_is_counted_beside_what_is_published(msvd):
    assert check("msvd", "--data-root", msvd) == (
        0,
        f"msvd in {msvd}: several captions a video; video to text: a video's best caption counts\n"
        "split  videos  published  usable  captions  published  without video\n"
        "train       8          8       8        24         24              0\n"
        "val         4          4       4        12          -              0\n"
        "test        4          4       4        12         12              0\n"
        "Everything is there.\n",
    )


def test_missing_and_broken_videos_are_named(msvd):
    gone, broken, *_ = videos_of(msvd)
    gone.unlink()
    broken.write_text("no video")
    code, output = check("msvd", "--data-root", msvd)
    assert code == 1
    assert "train       8          8       6        24         24              6\n" in output
    assert f"missing videos: 1\n  {gone.with_suffix('.mp4')}\n" in output
    assert f"broken videos: 1\n  {broken}: this video is not a video or is damaged (" in output
    assert output.endswith("2 videos cannot be used; training and evaluation leave them out.\n")


def test_ten_names_are_printed_and_json_has_all(mine):
    damaged = damage_twenty(mine.parent)
    with mine.open("a") as file:
        file.writelines(f"{path.name},damaged\n" for path in damaged)
    code, output = check(mine, "--jobs", 1)
    assert code == 1
    assert "broken videos: 18\n" in output
    assert output.count(": this video ") == 10
    assert "  and 8 more; --json names all\n" in output
    code, found = check_json(mine, "--jobs", 1)
    assert code == 1
    assert sorted([*found["missing"], *found["broken"]]) == sorted(map(str, damaged))
    assert found["splits"]["train"]["usable_videos"] == 16
    assert not found["all_usable"]


def test_sizes_that_are_not_as_published_are_a_fault(tmp_path):
    root = write_layout("activitynet", tmp_path / "set")
    code, output = check("activitynet", "--data-root", root)
    assert code == 1
    assert "ids without captions: 2\n  v_no_caption_train\n  v_no_caption_test\n" in output
    assert "  train has 8 videos, published are 10,009\n" in output
    assert "  test has 1 ids without captions, published are 9\n" in output
    assert output.endswith("Every video can be used.\n")


def test_sizes_nobody_published_are_no_fault(mine, tmp_path):
    assert check("vatex", "--data-root", write_layout("vatex", tmp_path / "vatex"))[0] == 0
    code, found = check_json(mine)
    assert code == 0
    assert found["splits"]["train"]["published_videos"] is None


def test_nothing_changes_in_the_data_root(msvd):
    def state():
        return {path: path.stat().st_mtime_ns for path in [msvd, *msvd.rglob("*")]}

    before = state()
    check("msvd", "--data-root", msvd)
    assert state() == before


def test_faults_of_the_input_are_one_line(tmp_path):
    code, output = check("msvd", "--data-root", tmp_path)
    assert code == 1
    assert output.startswith("Error: raw-captions.pkl is missing: it is neither in ")
    assert output.count("\n") == 1
    assert check("shapes")[1].startswith("Error: data set 'shapes' is generated")
