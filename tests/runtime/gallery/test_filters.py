"""Metadata from a csv, and filters in SQL that can read and do nothing else."""

import os
import sqlite3
import time
import unicodedata
from contextlib import closing, suppress

import numpy as np
import pytest

from dgl_runtime.errors import ConfigError, GalleryError
from dgl_runtime.gallery.filters import LONGEST_TEXT, quoted
from dgl_runtime.gallery.gallery import FileState, Gallery
from tests.helpers.made_galleries import BATCH, batch, gallery_of


@pytest.fixture
def folder(tmp_path):
    """Three videos of four clips each, in files of the csv's folder."""
    folder = gallery_of(tmp_path / "gallery", 0)
    with Gallery.open(folder, writable=True) as gallery:
        for number in range(3):
            clips, *vectors = batch(number)
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(bytes(number))
            gallery.upsert(FileState.of(path), clips[0].content_sha256, 60.0)
            gallery.ingest(clips, *vectors)
    return folder


def take(folder, text, encoding="utf-8"):
    path = folder.parent / "list.csv"
    path.write_bytes(text.encode(encoding))
    with Gallery.open(folder, writable=True) as gallery:
        return gallery.upsert_metadata(path, print)


def rows_of(folder, where):
    with Gallery.open(folder) as gallery:
        return np.flatnonzero(gallery.select(where)).tolist()


def metadata_at(gallery, row):
    return gallery.look_up([row])[row].metadata


def test_columns_of_a_csv_can_be_named(folder):
    report = take(
        folder,
        'video,camera,Take,light\n0.mp4,north,1,0.5\n1.mp4,"south, low",2,\n9.mp4,x,3,1\n',
        "utf-8-sig",
    )
    assert (report.matched, report.unmatched) == (2, ["9.mp4"])
    assert rows_of(folder, "camera = 'north'") == [0, 1, 2, 3]
    assert rows_of(folder, "camera LIKE 'south%' AND start_s > 0.15") == [6, 7]
    assert rows_of(folder, "take >= 2") == [4, 5, 6, 7]
    assert rows_of(folder, "light IS NULL") == list(range(4, 12))
    with Gallery.open(folder) as gallery:
        assert gallery.facts.columns[5:] == ["camera", "Take", "light"]
        assert metadata_at(gallery, 0) == {
            "camera": "north",
            "Take": 1,
            "light": 0.5,
        }
        assert metadata_at(gallery, 9) == {}


def test_a_second_csv_replaces_rows_and_adds_columns(folder):
    take(folder, "video,camera\n0.mp4,north\n1.mp4,south\n")
    take(folder, "video,title\n1.mp4,Träume\n")
    assert rows_of(folder, "camera = 'north'") == [0, 1, 2, 3]
    assert rows_of(folder, "title = 'Träume' AND camera IS NULL") == [4, 5, 6, 7]


def test_names_with_leading_zeros_stay_texts(folder):
    take(folder, "video,code\n0.mp4,007\n1.mp4,012\n")
    assert rows_of(folder, "code = '007'") == [0, 1, 2, 3]


def test_what_a_gallery_knows_of_files_can_be_named(folder):
    assert rows_of(folder, "video LIKE '%/1.mp4'") == [4, 5, 6, 7]
    assert rows_of(folder, "end_s - start_s > 3") == []
    assert len(rows_of(folder, "modified > '2020' AND duration_s = 60")) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,camera\n",
            r"no column video; its first line has name, camera \('name' looks like video\)",
        ),
        ("", "no column video; its first line has nothing"),
        ("video,camera,Camera\n", "each needs a name of its own"),
        ("video,start_s\n", "each needs a name of its own, other than video, start_s"),
        ("video,\n", "each needs a name of its own"),
        ("video,camera\n0.mp4,north,1\n", "line 2 has 3 cells, its header has 2"),
        ('video,camera\n0.mp4,"north\n', "line 2 opens a quotation mark that is never closed"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(folder, text, message):
    with pytest.raises(ConfigError, match=message):
        take(folder, text)


def test_a_csv_that_is_not_text_is_refused(folder):
    with pytest.raises(ConfigError, match=r"list\.csv line 2 is not text in UTF-8"):
        take(folder, "video,camera\n0.mp4,Süd\n", "latin-1")


@pytest.mark.parametrize(
    "where",
    [
        "",
        "camera = 'north'",
        "start_s <",
        "1); DROP TABLE clips; --",
        "1; DELETE FROM clips",
        "(SELECT count(*) FROM header) > 0",
        "(SELECT count(*) FROM sqlite_master) > 0",
        "load_extension('x')",
        "length(zeroblob(1000000000)) > 0",
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n) > 0",
        "(SELECT count(*) FROM clips a, clips b, clips c, clips d, clips e, clips f, clips g, clips h) > 0",
        "video = 'x\0'",
        "PRAGMA user_version = 3",
        "(" * 2000 + "1" + ")" * 2000,
        "1) UNION SELECT 1 --",
        "(SELECT count(*) FROM cuts) = 0",
        "(SELECT count(*) FROM dead_rows) = 0",
        "(SELECT max(row) FROM dead_rows) IS NULL",
        "(SELECT count(*) FROM pragma_table_info('files')) > 0",
        "(SELECT count(*) FROM json_each('[1]')) > 0",
        "EXISTS (SELECT 1 FROM cuts)",
    ],
)
def test_a_condition_that_is_wrong_or_would_do_harm_is_one_line(folder, where):
    before = (folder / "gallery.sqlite").read_bytes()
    with Gallery.open(folder) as gallery:
        with pytest.raises(
            GalleryError, match=r"the filter .* does not work: .* Give a condition"
        ) as e:
            gallery.select(where)
        assert "\n" not in str(e.value)[:200].replace(where, "")
        assert len(gallery.select("1").nonzero()[0]) == 3 * BATCH  # and goes on
    assert (folder / "gallery.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    "where",
    [
        "1) OR (1",
        "1) UNION SELECT 12 WHERE (1",
        "1) UNION SELECT -1 WHERE (1",
        "1) UNION SELECT 10000000 WHERE (1",
        "1 -- all",
        "1 /* all */",
    ],
)
def test_a_condition_cannot_reach_beyond_the_rows(folder, where):
    assert set(rows_of(folder, where)) <= set(range(12))


def test_a_writer_and_a_filter_do_not_meet(folder):
    with Gallery.open(folder, writable=True) as writer:
        assert writer.select("start_s >= 0").sum() == 12
        writer.ingest(*batch(7))
        assert writer.select("start_s >= 0").sum() == 16
    with closing(sqlite3.connect(folder / "gallery.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "where",
    [
        '1) UNION ALL SELECT a."row" FROM clips a, clips b, clips c, clips d WHERE (1',
        "replace(hex(zeroblob(49000)),'0','a')||start_s LIKE '%'||replace(hex(zeroblob(24000)),'0','a')||'b'",
    ],
)
def test_a_condition_that_wants_too_much_is_refused(folder, where):
    """Millions of rows; hours inside one function, where SQLite does not count its steps."""
    with pytest.raises(GalleryError, match="the filter"):
        rows_of(folder, where)


def test_a_condition_may_read_four_tables_and_no_other(folder):
    with closing(sqlite3.connect(folder / "gallery.sqlite")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    with Gallery.open(folder) as gallery:
        for table in ["sqlite_master", "sqlite_schema", *tables]:
            where = f"(SELECT count(*) FROM {quoted(table)}) >= 0"
            if table in {"clips", "videos", "files", "metadata"}:
                assert gallery.select(where).all()
            else:
                with pytest.raises(GalleryError, match=r"prohibited|not authorized|no such table"):
                    gallery.select(where)


def test_what_a_filter_may_is_no_rule_for_what_comes_after(folder):
    """Limits, the authorizer and the clock go with the filter, also with one that failed."""
    with Gallery.open(folder, writable=True) as writer:
        for where in ("start_s >= 0", "nothing = 1"):
            with suppress(GalleryError):
                writer.select(where)
            with writer._records.change() as connection:
                for kind in (sqlite3.SQLITE_LIMIT_LENGTH, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH):
                    assert connection.getlimit(kind) > LONGEST_TEXT
                long = "a" * 2 * LONGEST_TEXT
                found = connection.execute("SELECT ? LIKE ?", (long, "a%" * 200)).fetchone()
                assert found == (1,)
                connection.execute("SELECT count(*) FROM header").fetchone()
        deadline = time.monotonic() + 2.2
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000)"
        while time.monotonic() < deadline:
            assert writer._records.rows(f"{numbers} SELECT count(*) FROM n") == [(200_000,)]


def test_a_name_in_double_quotes_is_never_a_text(folder):
    take(folder, 'video,year,in "use",a`b\n'.replace('"use"', "use") + "0.mp4,1999,x,1\n")
    assert rows_of(folder, '"year" = 1999') == [0, 1, 2, 3]
    assert rows_of(folder, 'YEAR = 1999 AND "in use" = \'x\' AND "a`b" = 1') == [0, 1, 2, 3]
    for where, reason in {
        '"yaer" = 1999': "no such column: yaer (did you mean year?). Give",
        "yaer = 1999": "no such column: yaer (did you mean year?). Give",
        "`YAER` = 1999": "no such column: YAER (did you mean year?). Give",
        '"in use" = "x"': "no such column: x. Give",
        "\"x\" = 'year' AND year = 1": "no such column: x. Give",
        'year = 1999 AND "a""b" IS NULL': 'no such column: a"b',
        'year IN ("1999")': "no such column: 1999",
        'year = 1999 AND /* " */ "nine" = 1 /* " */': "no such column: nine",
        'year = 1 -- "\n OR "nine" = 1 -- "': "no such column: nine",
        '["] = 1 OR "nine" = ["]': 'no such column: "',
        '`"` = 1': 'no such column: "',
        "'it''s' = \"it's\"": "no such column: it's",
    }.items():
        with pytest.raises(GalleryError) as caught:
            rows_of(folder, where)
        assert f"does not work: {reason}" in str(caught.value)
    with pytest.raises(GalleryError) as caught:
        rows_of(folder, "colour = 1")
    assert str(caught.value) == (
        "the filter 'colour = 1' does not work: no such column: colour. Give a condition in SQL on video, "
        "start_s, end_s, duration_s, modified, year, in use, a`b; texts stand in 'single quotes'."
    )
    take(folder, 'video,"a""b",Take\n1.mp4,5,6\n')
    assert rows_of(folder, '"a""b" = 5') == rows_of(folder, '`a"b` = 5') == [4, 5, 6, 7]
    with pytest.raises(GalleryError, match=r"no such column: tkae \(did you mean Take\?\)"):
        rows_of(folder, "tkae = 6")
    # In a text and in a comment, double quotes are themselves.
    take(folder, 'video,said\n0.mp4,"""no"" it\'s"\n1.mp4,`\n')
    assert rows_of(folder, "said = '\"no\" it''s'") == [0, 1, 2, 3]
    assert rows_of(folder, "said = '`' -- \"\n OR said = '\"' /* \" */") == [4, 5, 6, 7]


def test_inner_names_are_no_columns_of_the_metadata(folder):
    inner = ["row", "clips", "videos", "files", "metadata", "path", "id", "mtime_ns", "size", "rowid",
             "content_sha256", "composed", "header", "select", "Video_ID", "oid", "_rowid_"]  # fmt: skip
    values = [f"{name}!" for name in inner]
    take(folder, f"video,{','.join(inner)}\n1.mp4,{','.join(values)}\n")
    for name, value in zip(inner, values, strict=True):
        assert rows_of(folder, f"{quoted(name)} = '{value}'") == [4, 5, 6, 7], name
    with Gallery.open(folder) as gallery:
        assert gallery.facts.columns[5:] == inner
        assert metadata_at(gallery, 5) == dict(zip(inner, values, strict=True))
    take(folder, "VIDEO,video_id\n0.mp4,7\n")  # the column is there by another case
    assert rows_of(folder, "video_id = 7") == [0, 1, 2, 3]
    assert rows_of(folder, "row IS NULL") == [0, 1, 2, 3, 8, 9, 10, 11]


def test_columns_that_differ_in_case_or_form_are_the_same_column(folder):
    take(folder, "video,\u00dcber,stra\u00dfe\n0.mp4,1,2\n")
    take(folder, "video,u\u0308BER,STRASSE\n1.mp4,3,4\n")
    with Gallery.open(folder) as gallery:
        assert gallery.facts.columns[5:] == ["\u00dcber", "stra\u00dfe"]
    assert rows_of(folder, '"\u00dcber" = 3 AND "stra\u00dfe" = 4') == [4, 5, 6, 7]
    assert rows_of(folder, '"U\u0308ber" = 1') == [0, 1, 2, 3]


def test_a_text_as_long_as_a_filter_takes_can_be_filtered_by(folder):
    long = "ä" * (LONGEST_TEXT // 2)
    take(folder, f"video,title,more\n0.mp4,{long},{long}\n1.mp4,b,{long}\n")
    assert rows_of(folder, "title LIKE 'ää%' AND more LIKE '%ä'") == [0, 1, 2, 3]
    assert rows_of(folder, "title = 'b' AND length(more) > 9000") == [4, 5, 6, 7]
    with pytest.raises(ConfigError) as caught:
        take(folder, f"video,title\n0.mp4,b\n1.mp4,{long}a\n")
    assert str(caught.value) == (
        f"{folder.parent / 'list.csv'} line 3: title has 32,001 bytes, a filter takes texts of at most "
        "32,000. Shorten it."
    )
    with pytest.raises(
        GalleryError, match=r"makes or reads a text of more than 32,000 bytes\. Give"
    ):
        rows_of(folder, "length(title || more) > 1")


def test_long_texts_do_not_let_a_filter_run_for_long(folder):
    long = "a" * LONGEST_TEXT
    take(folder, f"video,title\n0.mp4,{long}\n1.mp4,{long}\n")
    before = time.process_time()
    every = ", ".join(f"clips c{number}" for number in range(8))
    trimmed = "length(trim(title, substr(title, 1, 2000) || 'b')) + c0.row"
    with pytest.raises(GalleryError, match="it takes too long"):
        rows_of(folder, f"(SELECT sum({trimmed}) FROM {every}) > 0")
    assert time.process_time() - before < 10


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_equal_in_either_form(folder, tmp_path, form):
    there, asked = (
        (unicodedata.normalize(one, "größe.mp4"))
        for one in ("NFD", "NFC")[:: 1 if form == "NFC" else -1]
    )
    (tmp_path / there).write_bytes(b"x" * 9)
    with Gallery.open(folder, writable=True) as gallery:
        clips, *vectors = batch(9)
        gallery.upsert(FileState.of(tmp_path / there), clips[0].content_sha256, 60.0)
        gallery.ingest(clips, *vectors)
    assert rows_of(folder, f"video = '{tmp_path / asked}'") == [12, 13, 14, 15]
    assert rows_of(folder, f"video LIKE '%/{there}'") == [12, 13, 14, 15]
    report = take(folder, f"video,{asked}\n{asked},{there}\n")
    assert (report.matched, report.unmatched) == (1, [])
    assert rows_of(folder, f"\"{there}\" = '{asked}'") == [12, 13, 14, 15]
    (tmp_path / there).unlink()  # the gallery still has its name
    assert take(folder, f"video,camera\n{asked},1\n").matched == 1
    report = take(folder, f"video,camera\n{asked.upper()},1\n")
    assert report.unmatched == [f"{asked.upper()} (the gallery holds {tmp_path / there})"]


def test_a_path_that_is_no_text_does_not_stop_a_filter(folder, tmp_path):
    name = os.fsdecode(b"gr\xf6\xdfe.mp4")
    with Gallery.open(folder, writable=True) as gallery:
        clips, *vectors = batch(9)
        gallery.upsert(FileState(str(tmp_path / name), 1, 1), clips[0].content_sha256, 60.0)
        gallery.ingest(clips, *vectors)
    assert rows_of(folder, "video LIKE '%gr%.mp4'") == [12, 13, 14, 15]
