"""Metadata from a csv, and filters in SQL that can read and do nothing else."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from made_galleries import BATCH, batch, gallery_of

from dgl_runtime.errors import ConfigError, GalleryError
from dgl_runtime.gallery import FileState, Gallery
from dgl_runtime.gallery_metadata import read_metadata


@pytest.fixture
def folder(tmp_path):
    """Three videos of four clips each, in files of the csv's folder."""
    folder = gallery_of(tmp_path / "gallery", 0)
    with Gallery.open(folder, writable=True) as gallery:
        for number in range(3):
            clips, *vectors = batch(number)
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(bytes(number))
            gallery.place(FileState.of(path), clips[0].content_sha256, 60.0)
            gallery.append(clips, *vectors)
    return folder


def take(folder, text, encoding="utf-8"):
    path = folder.parent / "list.csv"
    path.write_bytes(text.encode(encoding))
    with Gallery.open(folder, writable=True) as gallery:
        return read_metadata(gallery.records, path)


def rows_of(folder, where):
    with Gallery.open(folder) as gallery:
        return np.flatnonzero(gallery.select(where)).tolist()


def metadata_at(records, row):
    _, video_id = records.look_up([row])[row]
    return records.metadata_of([video_id]).get(video_id, {})


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
        records = gallery.records
        assert records.metadata_columns() == ["camera", "Take", "light"]
        assert metadata_at(records, 0) == {
            "camera": "north",
            "Take": 1,
            "light": 0.5,
        }
        assert metadata_at(records, 9) == {}


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
        ("name,camera\n", "expected one named 'video'"),
        ("", "expected one named 'video'"),
        ("video,camera,Camera\n", "each needs a name of its own"),
        ("video,start_s\n", "each needs a name of its own, other than video, start_s"),
        ("video,\n", "each needs a name of its own"),
        ("video,camera\n0.mp4,north,1\n", "line 2 has 3 cells, its header has 2"),
        ('video,camera\n0.mp4,"north\n', "cannot be read as a csv"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(folder, text, message):
    with pytest.raises(ConfigError, match=message):
        take(folder, text)


def test_a_csv_that_is_not_text_is_refused(folder):
    with pytest.raises(ConfigError, match="cannot be read as a csv in UTF-8"):
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
    "where", ["1) OR (1", "1) UNION SELECT 10000000 WHERE (1", "1 -- all", "1 /* all */"]
)
def test_a_condition_cannot_reach_beyond_the_rows(folder, where):
    assert set(rows_of(folder, where)) <= set(range(12))


def test_a_writer_and_a_filter_do_not_meet(folder):
    with Gallery.open(folder, writable=True) as writer:
        assert writer.select("start_s >= 0").sum() == 12
        writer.append(*batch(7))
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
