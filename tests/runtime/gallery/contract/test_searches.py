"""Searches, filters, metadata and corrections for hubs, the same in every gallery."""

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.address import open_or_create
from dgl_runtime.gallery.clips import Clip, FileState
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.search.find import Refinement, bank_hubness, find_moments
from tests.helpers.made_galleries import MADE, E, F, unit

VIDEOS, CLIPS = 40, 25
TABLE = """video,camera,Take,light,in use
/v/0.mp4,north,1,0.5,x
/v/1.mp4,"south, low",2,,y
/v/2.mp4,Süd,10,1.5,
/v/3.mp4,100%_\\sure,,2.5,
"""


@pytest.fixture(scope="module")
def made():
    """Some clips, a few of which are alike to the last bit."""
    rng = np.random.default_rng(0)
    clips = [
        Clip(f"/v/{video}.mp4", f"{video:064x}", 2.0 * number, 2.0 * number + 3, 60.0 + video)
        for video in range(VIDEOS)
        for number in range(CLIPS)
    ]
    embeddings = rng.standard_normal((len(clips), E))
    embeddings[7::50] = embeddings[3]
    weights = rng.random((len(clips), F), np.float32)
    return clips, unit(embeddings), weights


def fill(gallery, made, table):
    for video in range(VIDEOS):
        gallery.upsert(
            FileState(f"/v/{video}.mp4", 1, 1_700_000_000 * 10**9), f"{video:064x}", 60.0 + video
        )
    for first in range(0, VIDEOS * CLIPS, 100):
        gallery.ingest(*(part[first : first + 100] for part in made))
    return gallery.upsert_metadata(table, lambda told: None)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "list.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def local(made, table, tmp_path_factory):
    with Gallery.create(tmp_path_factory.mktemp("local") / "gallery", **MADE) as gallery:
        assert fill(gallery, made, table).matched == 4
        yield gallery


@pytest.fixture(scope="module")
def other(made, table, postgres):
    with open_or_create(postgres.place(), **MADE) as gallery:
        assert fill(gallery, made, table).matched == 4
        yield gallery


def hits(gallery, queries, top_k, where=None):
    """Clips and similarities, query by query."""
    rows, similarity = gallery.search(queries, top_k, where)
    found = gallery.look_up(set(rows.ravel().tolist()))
    return [[found[row].clip for row in one] for one in rows.tolist()], similarity.tolist()


@pytest.mark.parametrize("top_k", [1, 10, 2 * VIDEOS * CLIPS])
def test_searches_agree_to_the_last_bit(local, other, top_k):
    queries = unit(np.random.default_rng(1).standard_normal((200, E)))
    queries = queries if top_k < 100 else queries[:3]
    assert hits(other, queries, top_k) == hits(local, queries, top_k)


@pytest.mark.parametrize("grouping", ["apart", "merge", "video", "none"])
@pytest.mark.parametrize("where", [None, "start_s < 20 AND video NOT LIKE '%/1_.mp4'"])
def test_moments_agree(local, other, grouping, where):
    queries = unit(np.random.default_rng(2).standard_normal((10, E)))
    refinement = Refinement(where, grouping)
    assert moments(other, queries, refinement) == moments(local, queries, refinement)


def test_moments_that_are_corrected_for_hubs_agree(local, other):
    rng = np.random.default_rng(3)
    queries, bank = unit(rng.standard_normal((10, E))), unit(rng.standard_normal((120, E)))
    found, plain = (
        [
            moments(one, queries, Refinement(bank_hubness=near))
            for one, near in ((local, given(local)), (other, given(other)))
        ]
        for given in (lambda one: bank_hubness(one, bank), lambda one: None)
    )
    assert found[0] == found[1]
    assert plain[0] != found[0]
    with pytest.raises(ValueError, match="0 queries"):
        moments(other, queries, Refinement(bank_hubness=bank_hubness(other, bank[:0])))


def moments(gallery, queries, refinement):
    return [
        [(hit.video, hit.start_s, hit.end_s, hit.similarity, hit.frame_weights) for hit in one]
        for one in find_moments(gallery, queries, 20, refinement)
    ]


@pytest.mark.parametrize(
    "where",
    [
        "camera = 'north'",
        "CAMERA = 'north' AND start_s > 10.5",
        "camera LIKE 'SOUTH%'",
        "camera LIKE 'sÜd'",  # letters beyond ASCII are as they are
        "camera LIKE 'Süd'",
        "camera LIKE '100\\%'",
        "camera LIKE '100%\\_ure'",
        "camera LIKE '100%\\sure'",
        "camera GLOB 'n*h' OR camera GLOB 'N*'",
        "camera GLOB '100%_\\s?re'",
        "camera NOT LIKE 'n%'",
        "camera NOT GLOB 'n*'",
        "camera >= 'n' AND camera < 't'",
        "camera > 'S' AND camera < 'a'",
        "camera IN ('north', 'x')",
        "camera NOT IN ('north', 'x')",
        "camera IS NULL",
        "camera NOT NULL",
        "camera IS 'north' OR take IS NOT 1",
        "light IS NOT NULL AND NOT light > 1",
        "take >= 2",
        "take = 10",
        "take IN (1, 10.0)",
        "take BETWEEN 1 AND 2",
        "take NOT BETWEEN 1 AND 2",
        "take + 1 = 2 OR take * 2 - 1 = 3",
        "-take < -5",
        "abs(take - 3) = 2 OR round(light) = 2",
        "round(start_s, 1) = 4",
        "coalesce(light, 9) = 9",
        "ifnull(camera, 'none') = 'none'",
        "lower(camera) = 'north' OR upper(camera) = 'NORTH'",
        "length(camera) = 3",
        "camera || '!' = 'north!'",
        "\"in use\" = 'x' OR [in use] = 'y'",
        "`in use` IS NULL",
        "start_s < 10 AND end_s > 5",
        "duration_s > 70 AND duration_s <= 75.0",
        "video LIKE '%/1.mp4'",
        "video = '/v/3.mp4'",
        "modified >= '2023-11' AND modified < '2023-11-15'",
        "modified > '2023-11-15'",
        "modified = '2023-11-14 22:13:20'",
        "1",
        "0 OR take",
        "NOT take",
        "TRUE AND NOT FALSE",
        "NULL",
        "(take = 1) + (light > 0) = 2",
        "1 -- all",
        "1 /* all */",
        "camera = 'it''s'",
        "camera <> 'north' AND camera != 'x'",
        "start_s = 1e1",
    ],
)
def test_a_condition_means_the_same(local, other, where):
    query = unit(np.ones((1, E)))
    assert hits(other, query, 2000, where) == hits(local, query, 2000, where)
    assert hits(other, query, 2000, other.select(where)) == hits(other, query, 2000, where)


@pytest.mark.parametrize(
    "where",
    [
        "",
        "kamera = 'north'",
        "start_s <",
        "1); DROP TABLE clips; --",
        "1; DELETE FROM clips",
        "1) UNION SELECT 1 --",
        "(SELECT count(*) FROM header) > 0",
        "EXISTS (SELECT 1 FROM cuts)",
        "load_extension('x')",
        "pg_sleep(1)",
        "pg_read_file('/etc/passwd') LIKE '%'",
        "video = 'x\0'",
        "PRAGMA user_version = 3",
        "(" * 2000 + "1" + ")" * 2000,
        "header.version = 1",
        "start_s = ?",
        "start_s = :one",
    ],
)
def test_a_condition_that_is_wrong_or_would_do_harm_is_one_line(local, other, where):
    for gallery in (local, other):
        with pytest.raises(
            GalleryError,
            match=r"the filter .* does not work: .* Give a condition in SQL on video, start_s",
        ) as error:
            gallery.select(where)
        assert "\n" not in str(error.value).replace(repr(where), "")
        assert len(gallery) == VIDEOS * CLIPS


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("start_s IN (SELECT 1)", "IN takes a list in parentheses|In with query"),
        ("start_s / 2 = 1", "Div is not taken by a gallery in PostgreSQL, which takes AND, OR"),
        ("CAST(start_s AS TEXT) = '1'", "Cast is not taken"),
        ("instr(camera, 'n') = 1", "is not taken by a gallery in PostgreSQL"),
        ("camera = 5", "a number stands where a text is expected"),
        ("start_s LIKE '1%'", "a number stands where a text is expected"),
        ("start_s + 'a' = 1", "a text stands where a number is expected"),
        ("camera", "a text stands where a condition is expected"),
        ("camera LIKE camera", "LIKE and GLOB take a pattern in 'single quotes'"),
        ("camera GLOB '[a-z]*'", r"GLOB takes \* and \?"),
        (f"camera LIKE '{'a' * 201}'", "a pattern has at most 200 bytes"),
        ("camera LIKE 'a' ESCAPE 'b'", "is not taken|take a pattern"),
        ("coalesce(camera, 1) = 1", "coalesce takes texts or numbers"),
        ("camera IS TRUE", "IS takes NULL, a text or a number"),
        ("clips.start_s = 1", "a name stands alone|is not taken"),
        ("1; 1", "2 statements"),
        ("start_s < 1e999999", "too large|overflow|out of range|PostgreSQL"),
    ],
)
def test_what_postgresql_does_not_take_is_named(other, where, told):
    with pytest.raises(GalleryError, match=rf"the filter .* does not work: .*({told})"):
        other.search(unit(np.ones((1, E))), 1, where)
    assert len(other) == VIDEOS * CLIPS


def test_a_name_that_is_nearly_one_is_told(local, other):
    for gallery in (local, other):
        with pytest.raises(GalleryError, match=r"no such column: kamera \(did you mean camera\?\)"):
            gallery.select("kamera = 'north'")


def test_what_is_known_of_a_video_comes_with_its_clips(local, other):
    for gallery in (local, other):
        assert gallery.facts.columns[5:] == ["camera", "Take", "light", "in use"]
        (clips,), _ = hits(gallery, unit(np.ones((1, E))), 1000, "camera = 'south, low'")
        rows = gallery.search(unit(np.ones((1, E))), 1000, "take IN (2, 10)")[0][0]
        found = {one.clip.video: one.metadata for one in gallery.look_up(rows).values()}
        assert found["/v/1.mp4"] == {
            "camera": "south, low",
            "Take": 2,
            "light": None,
            "in use": "y",
        }
        assert {clip.video for clip in clips} == {"/v/1.mp4"}
        (row, *_), *_ = gallery.search(unit(np.ones((1, E))), 1, "video = '/v/9.mp4'")[0]
        assert gallery.look_up([row])[row].metadata == {}
