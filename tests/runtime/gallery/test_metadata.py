"""Metadata as tables hold it: what is said of which video, and what is refused or told before it is taken."""

import json
import os

import pytest

from dgl_runtime.errors import ConfigError
from dgl_runtime.gallery.gallery import FileState, Gallery
from dgl_runtime.gallery.metadata import MOST_COLUMNS, parse_metadata
from tests.helpers.made_galleries import BATCH, batch, gallery_of


def parse(tmp_path, content, name="list.csv"):
    """The columns, the values of each file, and the notes."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    notes = []
    found = parse_metadata(path, notes.append)
    named = {os.path.relpath(file, tmp_path): values for file, _, values in found.rows}
    return found.columns, named, [note.removeprefix(f"{path} ") for note in notes]


def error_of(tmp_path, content, name="list.csv"):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, content, name)
    return str(caught.value).removeprefix(f"{tmp_path / name} ")


def test_a_column_is_of_numbers_if_every_cell_is_one(tmp_path):
    columns = {
        "whole": (["1", "-20", " 3 "], [1, -20, 3]),
        "zero": (["0", " ", "999999999999999999"], [0, None, 999_999_999_999_999_999]),
        "real": (["1", "-0.5", "2E-3"], [1.0, -0.5, 0.002]),
        "large": (["1000000000000000000", "", "1"], [1e18, None, 1.0]),
        "code": (["007", "1", "2"], ["007", "1", "2"]),
        "minus": (["-0", "1", ""], [0.0, 1.0, None]),
        "text": (["1", " x ", " "], ["1", " x ", None]),
        "nan": (["nan", "1", "inf"], ["nan", "1", "inf"]),
        "date": (["2026-01-01", "2026", "1e100"], ["2026-01-01", "2026", "1e100"]),
        "empty": (["", "", ""], [None, None, None]),
        "arabic": (["\u0661", "", ""], ["\u0661", None, None]),
    }
    rows = [",".join(["video", *columns])]
    rows += [",".join([f"{n}.mp4", *(cells[n] for cells, _ in columns.values())]) for n in range(3)]
    names, found, notes = parse(tmp_path, "\n".join(rows))
    assert (names, notes) == (list(columns), [])
    for n in range(3):
        values = found[f"{n}.mp4"]
        assert values == [values[n] for _, values in columns.values()]
        assert list(map(type, values)) == [type(values[n]) for _, values in columns.values()]


def test_one_word_among_numbers_is_told(tmp_path):
    """A text is greater than any number, so every filter on the column would be wrong."""
    years = ["1999", "", "2003", " n/a ", "2001"]
    rows = ["video,Year", *(f"{n}.mp4,{year}" for n, year in enumerate(years))]
    _, found, notes = parse(tmp_path, "\n".join(rows))
    assert found["0.mp4"] == ["1999"]
    assert notes == [
        "line 5: Year is 'n/a' among numbers, so filters compare the whole column as text. "
        "Leave such cells empty."
    ]
    assert parse(tmp_path, "video,year\na.mp4,1\nb.mp4,x\n")[2] == []


def test_jsonl_holds_what_a_csv_holds(tmp_path):
    rows = [
        {"Video ": "a.mp4", "year": 1999, "light": 0.5, "title": "x"},
        {"video": "b.mp4", "light": 1, "title": None, "more": "1"},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    assert parse(tmp_path, text, "list.jsonl") == (
        ["year", "light", "title", "more"],
        {"a.mp4": [1999, 0.5, "x", None], "b.mp4": [None, 1.0, None, 1]},
        [],
    )
    for value in ([1], {"a": 1}, True):
        line = json.dumps({"video": "a.mp4", "year": value})
        assert error_of(tmp_path, f"\n{line}", "list.jsonl").startswith("line 2: year is ")
    for value in ("\ud800", "a\0"):
        line = json.dumps({"video": "a.mp4", "year": value})
        assert error_of(tmp_path, line, "list.jsonl") == (
            f"line 1: year is {value!r}, which holds a character that no text has."
        )
    for row in (
        {"year": 1, "video": " "},
        {"year": 1, "video": None},
        {"year": 1, "video": "a\0b"},
    ):
        text = json.dumps({"video": "a.mp4", "year": 1}) + "\n" + json.dumps(row)
        assert error_of(tmp_path, text, "list.jsonl") == "line 2 has no video. Fill it in."


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("video,year\na.mp4,1\n\n,2\n", "line 4 has no video. Fill it in."),
        (
            "video,year\na.mp4,1\n\nb.mp4,2\n./x/../a.mp4,3\n",
            "lines 2 and 5 are both about ./x/../a.mp4. Keep one of them.",
        ),
        ("video,year\na.mp4,1\na.mp4,1\n", "lines 2 and 3 are both about a.mp4. Keep one of them."),
        ("video,x\ngrö.mp4,1\ngro\u0308.mp4,2\n", "lines 2 and 3 are both about gro\u0308.mp4."),
        (
            "video,,year\n",
            "has the column number 2, which has no name; each needs a name of its own, other than video, "
            "start_s, end_s, duration_s, modified. Name it otherwise.",
        ),
        ("video, Modified\n", "has the column Modified; each needs a name of its own"),
        ("video;year\n", "has semicolons between its columns"),
        (
            f"video,{','.join(map(str, range(MOST_COLUMNS)))}\n",
            "has 1,901 columns, expected at most 1,900. Leave some out.",
        ),
        (
            'video,year\na.mp4,1\n\n\nb.mp4,"2\n',
            "line 5 opens a quotation mark that is never closed.",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path, content, fault):
    assert error_of(tmp_path, content).startswith(fault)


@pytest.mark.parametrize("name", ["file", "filename", "path", "name", "vidoe"])
def test_a_column_that_may_name_the_video_is_told(tmp_path, name):
    assert error_of(tmp_path, f"x,{name}\n1,a.mp4\n") == (
        f"has no column video; its first line has x, {name} ({name!r} looks like video). Name the "
        "columns there."
    )


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_metadata(tmp_path / "absent.csv")
    assert str(caught.value) == (
        f"{tmp_path}/absent.csv cannot be read as a table: No such file or directory. Check the path."
    )


def test_what_may_not_be_meant_is_told(tmp_path):
    columns, found, notes = parse(tmp_path, 'Video,title\na.mp4,"one\ntwo"\nb.mp4,x\n')
    assert (columns, found) == (["title"], {"a.mp4": ["one\ntwo"], "b.mp4": ["x"]})
    assert notes == [
        "has cells with line breaks, 1 of them; the first goes from line 2 to 3 in column title. If that "
        "is not meant, close its quotation marks."
    ]
    for text in ("video,year\n", "video\n\n,\n", "video,year"):
        assert parse(tmp_path, text)[2] == [
            "has a header and no row, so it says nothing of any video."
        ]


def test_a_file_is_named_from_the_folder_of_the_table_and_through_links(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("x/a.mp4")
    assert list(parse(tmp_path, "video\n link.mp4 \n")[1]) == ["x/a.mp4"]
    assert list(parse(tmp_path, f"video\n{tmp_path}/x/a.mp4\n")[1]) == ["x/a.mp4"]
    assert "lines 2 and 3 are both about x/a.mp4" in error_of(
        tmp_path, "video\nlink.mp4\nx/a.mp4\n"
    )
    for name in ("gr\u00f6.mp4", "gro\u0308.mp4"):  # two files, on disks that tell them apart
        (tmp_path / name).touch()
    assert len(parse(tmp_path, "video\ngr\u00f6.mp4\ngro\u0308.mp4\n")[1]) == 2


@pytest.fixture
def folder(tmp_path):
    """One video in two files, and another."""
    folder = gallery_of(tmp_path / "gallery", 0)
    with Gallery.open(folder, writable=True) as gallery:
        for number, names in enumerate([("a.mp4", "copy.mp4"), ("b.mp4",)]):
            clips, *vectors = batch(number)
            for name in names:
                gallery.upsert(FileState(str(tmp_path / name), 1, 1), clips[0].content_sha256, 60.0)
            gallery.ingest(clips, *vectors)
    return folder


def take(folder, content):
    """The report and the notes."""
    path = folder.parent / "list.csv"
    path.write_text(content)
    notes = []
    with Gallery.open(folder, writable=True) as gallery:
        return gallery.upsert_metadata(path, notes.append), notes


def test_files_with_one_content_are_one_video_and_that_is_told(folder):
    path = folder.parent / "list.csv"
    report, notes = take(folder, "video,year\na.mp4,1\n\ncopy.mp4,2\nb.mp4,3\n c.mp4 ,4\n")
    assert (report.matched, report.unmatched) == (2, ["c.mp4"])
    assert notes == [
        f"{path} lines 2 and 4 are about files with the same content, which are one video; line 4 counts."
    ]
    with Gallery.open(folder) as gallery:
        found = gallery.look_up([0, BATCH])
        assert [found[row].metadata for row in (0, BATCH)] == [{"year": 2}, {"year": 3}]
    assert take(folder, "video,year\na.mp4,1\ncopy.mp4,1\n")[1] == []


def test_who_takes_a_table_in_knows_at_once_what_it_says(folder):
    path = folder.parent / "list.csv"
    path.write_text("video,year\nb.mp4,3\n")
    with Gallery.open(folder, writable=True) as gallery:
        gallery.upsert_metadata(path, print)
        assert gallery.is_newest()
        assert [found.metadata for found in gallery.look_up([0, BATCH]).values()] == [
            {},
            {"year": 3},
        ]


def test_a_gallery_takes_so_many_columns_and_no_more(folder):
    first = [f"a{number}" for number in range(MOST_COLUMNS - 1)]
    cells = ",1" * len(first)
    assert take(folder, f"video,{','.join(first)}\na.mp4{cells}\n")[0].matched == 1
    with pytest.raises(ConfigError) as caught:
        take(folder, "video,b,c,A0\na.mp4,1,2,3\n")
    assert str(caught.value) == (
        f"with {folder.parent / 'list.csv'} the gallery would have 1,901 columns of metadata, expected at "
        "most 1,900. Leave some out."
    )
    take(folder, "video,b,A0\na.mp4,1,2\n")
    with Gallery.open(folder) as gallery:
        assert len(gallery.facts.columns) == 5 + MOST_COLUMNS
        assert gallery.select("b = 1 AND a0 = 2 AND a1 IS NULL").sum() == 4
