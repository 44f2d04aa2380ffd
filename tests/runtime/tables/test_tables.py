"""The reader of tables: what is one is read to the last cell, what is none is refused with its line."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.errors import ConfigError
from dgl_runtime.tables.csv_cells import csv_rows
from dgl_runtime.tables.table import Row, read_table
from dgl_runtime.tables.text_files import is_text, numbered_lines, read_list

WORDS = {"video": ("file",), "caption": ("text",), "start_s": ("start",), "end_s": ("end", "stop"),
         "split": ("subset", "set")}  # fmt: skip


def table_of(tmp_path, content, name="list.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, ["video", "caption"], WORDS)


def error_of(tmp_path, content, name="list.csv"):
    with pytest.raises(ConfigError) as caught:
        table_of(tmp_path, content, name)
    return str(caught.value).removeprefix(f"{tmp_path / name} ")


CELLS = st.text(st.sampled_from('ab", \r\n\té\u2028;'), max_size=6)


@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=6),
    # Without the quotes of all, Python 3.11 leaves a lone \r in a cell bare unless lines end so.
    st.sampled_from(
        [(csv.QUOTE_ALL, end) for end in ("\n", "\r\n", "\r")] + [(csv.QUOTE_MINIMAL, "\r\n")]
    ),
    st.booleans(),
)
def test_what_pythons_csv_writes_is_read_cell_by_cell(rows, how, is_ended):
    quoting, end = how
    out = io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator=end).writerows(rows)
    text = out.getvalue() if is_ended else out.getvalue().removesuffix(end)
    read = list(csv_rows(text))
    assert [[cell.text for cell in row] for row in read] == rows
    for row in read:
        for cell in row:
            broken = cell.text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
            assert cell.last_line - cell.line == broken


def test_lines_are_those_of_an_editor(tmp_path):
    table = table_of(
        tmp_path,
        '\r\nvideo,caption\r\n\r\na,"one\r\ntwo"\r\n  \r\n,,\r\nb,x\r\n"c\nc",y\rd,z',
    )
    assert [(row.line, row.cells) for row in table.rows] == [
        (4, {"video": "a", "caption": "one\r\ntwo"}),
        (8, {"video": "b", "caption": "x"}),
        (9, {"video": "c\nc", "caption": "y"}),
        (11, {"video": "d", "caption": "z"}),
    ]
    assert [(cell.key, cell.line, cell.last_line) for cell in table.long_cells] == [
        ("caption", 4, 5), ("video", 9, 10),
    ]  # fmt: skip
    assert table.notes(WORDS) == [
        f"{tmp_path / 'list.csv'} has cells with line breaks, 2 of them; the first goes from line 4 to 5 "
        "in column caption. If that is not meant, close its quotation marks."
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            'video,caption\na,ok\n\nb,"hello he says\nc,"hello he says\nd,x\n',
            "line 4 opens a quotation mark that is closed on line 5 in the middle of a cell. Close it at "
            "the cell's end, and write each quotation mark that is text twice.",
        ),
        ('video,caption\na,"b\nc"\nd,"e', "line 4 opens a quotation mark that is never closed. Close it."),
        ('video,caption\n"a\nb","c\n', "line 3 opens a quotation mark that is never closed. Close it."),
        (
            'video,caption\na,"he said "hi" to her"\n',
            "line 2 opens a quotation mark that is closed in the middle of a cell. Close it at the cell's "
            "end, and write each quotation mark that is text twice.",
        ),
        ('video,caption\na,"b" \n', "line 2 opens a quotation mark that is closed in the middle of a cell."),
        (
            'video,caption\na,a 5" screen\n',
            "line 2 has a quotation mark inside a cell that does not begin with one. Put the whole cell in "
            "double quotation marks and write each of its own twice.",
        ),
        ('video,caption\na, "b, c"\n', "line 2 has a quotation mark inside a cell"),
        (
            "video,caption,split\na,b\n",
            "line 2 has 2 cells, its header has 3. Give each column a cell, an empty one if need be.",
        ),
        (
            "video,caption\na,b, c\n",
            "line 2 has 3 cells, its header has 2. Put a text that has a comma in double quotation marks.",
        ),
        (
            "video,caption\na,b\nVideo, caption\nc,d\n",
            "line 3 is the header again. Take the line out; if several files were joined, look that all "
            "had these columns.",
        ),
        ("video,caption\na,b\n\ufeffvideo,caption\nc,d\n", "line 3 is the header again."),
        (
            "video;caption\na;b\n",
            "has semicolons between its columns, expected commas. Save it with commas.",
        ),
        ('video;caption\na;"b, c"\n', "has semicolons between its columns"),
        ("video;caption,split\na;b,c\n", "has semicolons between its columns"),
        ("video;caption,split\na,b,c\n", "has semicolons between its columns"),
        ("\n\nvideo\tcaption\na\tb, c, d\n", "has tabs between its columns"),
        ("video|caption\na|b\n", "has bars between its columns"),
        (
            "sep=;\nvideo;caption\na;b\n",
            "line 1 is Excel's 'sep=;': it tells of semicolons between columns. Take the line out, and "
            "separate columns by commas.",
        ),
        ("\nsep=,\nvideo,caption\na,b\n", "line 2 is Excel's 'sep=,': it tells of ',' between columns."),
        ("SEP=\t\nvideo\tcaption\na\tb\n", "line 1 is Excel's 'SEP=\\t': it tells of tabs between columns."),
        ("video,caption\na,b\nc,\0\n", "line 3 holds a NUL, which no text does."),
        ("video,caption\na,b\n".encode("utf-16"), "is text in UTF-16, expected UTF-8. Save it as UTF-8."),
        (b"\xfe\xff" + "video".encode("utf-16-be"), "is text in UTF-16, expected UTF-8."),
        ("video,caption\n".encode("utf-32"), "is text in UTF-32, expected UTF-8."),
        (b"\0\0\xfe\xff" + "video".encode("utf-32-be"), "is text in UTF-32, expected UTF-8."),
        ("video,caption\na,b\n".encode("utf-16-le"), "line 1 holds a NUL, which no text does."),
        (
            "video,caption\r\ncafé,x\rcafé,y\nb,ü\n".encode() + b"c,\xfc\n",
            "line 5 is not text in UTF-8 (byte 0xfc: invalid start byte). Save it as plain text in UTF-8.",
        ),
        (
            "video, Split,caption,split\n",
            "line 1 has columns 'Split' and 'split', which count as one: case and spaces around do not "
            "matter. Rename one; each needs a name of its own.",
        ),
        ("video,Stra\u00dfe,STRASSE,caption\n", "line 1 has columns 'Stra\u00dfe' and 'STRASSE', which count"),
        ("video,caf\u00e9,cafe\u0301,caption\n", "line 1 has columns 'caf\u00e9' and 'cafe\u0301', which"),
        (
            "file,captions,x\n",
            "has no column video and no column caption; its first line has file, captions, x ('file' looks "
            "like video, 'captions' looks like caption). Name the columns there.",
        ),
        ("", "has no column video and no column caption; its first line has nothing."),
    ],
)  # fmt: skip
def test_a_csv_that_is_none_is_refused_with_its_line(tmp_path, content, fault):
    assert error_of(tmp_path, content).startswith(fault)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"video": "a", "caption": "b"}\n\n[1]\n', "line 3 is [1], expected an object."),
        ('\n{"video": ', "line 2 is not JSON: "),
        ("[" * 100_000, "line 1 is not JSON: "),
        (
            '{"Split": "a", "split ": "b"}',
            "line 1 has columns 'Split' and 'split ', which count as one: case and spaces around do not "
            "matter. Rename one; each needs a name of its own.",
        ),
        (
            '{"video": "a", "video": "b"}',
            "line 1 has columns 'video' and 'video', which count as one",
        ),
        (
            '{"file": "a", "caption": "b"}',
            "has no column video; its objects have file, caption ('file' looks like video).",
        ),
        ('{"video": "a\0"}', "line 1 holds a NUL"),
    ],
)
def test_a_jsonl_that_is_none_is_refused_with_its_line(tmp_path, content, fault):
    assert error_of(tmp_path, content, "list.JSONL").startswith(fault)


def test_names_of_columns_are_read_without_case_and_spaces(tmp_path):
    rows = [Row(2, {"video": "a", "caption": " b ", "split": "c"})]
    assert (
        table_of(tmp_path, "\ufeff\ufeffVIDEO, Caption\t,\u200bSplit\xa0\na, b ,c\n").rows == rows
    )
    table = table_of(tmp_path, '\n{" Video": "a", "CAPTION": " b ", "split ": "c"}\n', "list.jsonl")
    assert table.rows == rows
    assert list(table.columns) == ["video", "caption", "split"]
    assert table.notes(WORDS) == []


def test_empty_cells_beyond_the_header_are_dropped_and_others_are_not(tmp_path):
    assert table_of(tmp_path, "video,caption\na,b,,\nc,d, \n,\n").rows == [
        Row(2, {"video": "a", "caption": "b"}),
        Row(3, {"video": "c", "caption": "d"}),
    ]
    assert "line 2 has 4 cells" in error_of(tmp_path, "video,caption\na,b,,x\n")


def notes_of(tmp_path, content, name="list.csv", passed_over=()):
    notes = table_of(tmp_path, content, name).notes(WORDS, passed_over)
    for note in notes:
        assert note.startswith(f"{tmp_path / name} has columns that are not read: ")
        assert note.endswith(". Columns that are read are video, caption, start_s, end_s, split.")
    return [note.split("not read: ")[1].split(". Columns")[0] for note in notes]


def test_columns_that_are_not_read_are_named_with_what_they_look_like(tmp_path):
    like = {
        "start": "start_s", "end": "end_s", "time_start": "start_s", "startTime": "start_s",
        "START S": "start_s", "splits": "split", "Subset": "split", "spilt": "split", "stop": "end_s",
        "sp l it": "split", "end of the split": "end_s", "start end": "start_s",
    }  # fmt: skip
    for name, meant in like.items():
        assert notes_of(tmp_path, f"video,caption,{name}\na,b,c\n") == [
            f"{name!r}, which looks like {meant}"
        ]
        row = {"video": "a", "caption": "b", name: "c"}
        text = json.dumps({"video": "a", "caption": "b"}) + "\n" + json.dumps(row)
        assert notes_of(tmp_path, text, "list.jsonl") == [f"{name!r}, which looks like {meant}"]
    for name in ("url", "id", "camera", "lang", "n"):
        assert notes_of(tmp_path, f"video,caption,{name}\na,b,c\n") == [repr(name)]
    # A column that is there has no need of another.
    assert notes_of(tmp_path, "video,caption,captions\na,b,c\n") == ["'captions'"]
    assert notes_of(tmp_path, "video,caption,n,url\na,b,c,d\n", passed_over=["n"]) == ["'url'"]
    assert notes_of(tmp_path, "video,caption,n\na,b,c\n", passed_over=["n"]) == []


def test_columns_without_a_name_are_told_by_number_if_they_hold_anything(tmp_path):
    assert notes_of(tmp_path, ",video,caption,,\n0,a,b,,\n1,c,d,,x\n") == [
        "number 1, which has no name; number 5, which has no name"
    ]
    assert table_of(tmp_path, "video,caption,, \na,b,,\n").unnamed == [3, 4]
    assert notes_of(tmp_path, "video,caption,, \na,b,,\n") == []


def test_lists_have_the_lines_that_editors_show(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff one \r\n\r\ntwo\u2028half\x85\rthree\x0b3\n \n four".encode())
    assert read_list(path) == ["one", "two\u2028half", "three\x0b3", "four"]
    assert [line for line, _ in numbered_lines(path)] == [1, 3, 4, 6]
    path.write_bytes(b"\xef\xbb\xbfxylophone x\n")
    assert read_list(path) == ["xylophone x"]
    path.write_bytes("one\ntwo\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"list\.txt is text in UTF-16, expected UTF-8"):
        read_list(path)


def test_a_text_has_no_halves_of_characters():
    for text in ("", "a é\U0001f600\ud7ff\ue000\n\x01"):
        assert is_text(text)
    for text in ("a\0", "\ud800b", "\udfff", "c\udc80d"):
        assert not is_text(text)
