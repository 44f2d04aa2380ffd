"""Galleries in PostgreSQL: writers at once, a server that goes and comes back, the graph, passwords."""

import os
import threading

import numpy as np
import pytest

pytest.importorskip("psycopg", reason="the tests of PostgreSQL need the extra postgres")

from dgl_runtime.errors import GalleryAwayError, GalleryError
from dgl_runtime.gallery.address import open_gallery, open_or_create, read_place
from dgl_runtime.gallery.clips import FileState
from dgl_runtime.gallery.postgres.gallery import PostgresGallery
from tests.helpers.gallery_writers import write_at_once
from tests.helpers.made_galleries import BATCH, MADE, E, F, batch, unit


def counted(gallery):
    """Rows of the tables, beside what the header says of them."""
    ((clips, keys, videos),) = gallery._records.rows(
        """SELECT (SELECT count(*) FROM clips), (SELECT count(DISTINCT (video_id, start_s, end_s)) FROM clips),
        (SELECT count(*) FROM videos)"""
    )
    return clips, keys, videos


def test_writers_at_once_leave_each_clip_once(postgres):
    """Four processes make the gallery and write the same batches, each in another order."""
    address = postgres.address()
    orders = [np.random.default_rng(seed).permutation(20).tolist() for seed in range(4)]
    write_at_once(address, orders)
    with open_gallery(read_place(address)) as gallery:
        clips, keys, videos = counted(gallery)
        assert clips == keys == len(gallery)
        assert videos == gallery.facts.num_videos == 20
        # Whoever forgets a file has added its clips again before it ends.
        assert counted(gallery) == (20 * BATCH, 20 * BATCH, 20)
    # A deadlock costs a second and is done again; many in a row would be told as a fault.
    with postgres.connect() as connection:
        assert connection.execute("SELECT sum(deadlocks) FROM pg_stat_database").fetchone() == (0,)


def test_a_clip_of_what_a_file_held_before_is_not_added(postgres):
    """One machine read a file, another sees later that it holds something else; then the first adds."""
    with open_or_create(postgres.place(), **MADE) as gallery:
        clips, embeddings, weights = batch(0)
        gallery.upsert(FileState(clips[0].video, 2, 2), f"{7:064x}", 60.0)
        gallery.ingest(clips, embeddings, weights)
        assert (len(gallery), gallery.facts.num_videos) == counted(gallery)[::2] == (0, 1)
        gallery.upsert(FileState("/other.mp4", 1, 1), clips[0].content_sha256, 60.0)
        gallery.ingest(clips, embeddings, weights)
        assert counted(gallery) == (BATCH, BATCH, 2)


def test_what_is_nested_is_said_once(postgres):
    with open_or_create(postgres.place(), **MADE) as gallery:
        for nested in ("({} BETWEEN 0 AND 1)", "({} IN (0, 1))"):
            where = "1"
            for _ in range(20):
                where = nested.format(where)
            assert len(gallery.select(where).values) < 100


def test_a_writer_that_reads_waits_for_its_server_too(own_postgres):
    with open_or_create(own_postgres.place(), **MADE) as gallery:
        gallery.ingest(*batch(0))
        own_postgres.kill()
        starting = threading.Timer(1, own_postgres.start)
        starting.start()
        assert gallery.missing(batch(0)[0]) == []
        starting.join()


def test_no_address_shows_a_password_that_is_written_oddly():
    with pytest.raises(GalleryError, match="Write a % itself as %25") as error:
        read_place("postgresql://u:100%secret@h/db?gallery=x")
    assert "secret" not in str(error.value)
    place = read_place("postgresql://u@h/db?gallery=x&pass%77ord=secret")
    assert place.has_password
    assert "secret" not in str(place)


def test_a_server_that_is_killed_while_a_writer_adds_loses_nothing(own_postgres):
    place = own_postgres.place()
    with open_or_create(place, **MADE) as gallery:
        done, failed = [], []

        def add():
            try:
                for number in range(60):
                    gallery.ingest(*batch(number))
                    done.append(number)
            except BaseException as error:  # shown below
                failed.append(error)

        writer = threading.Thread(target=add)
        writer.start()
        for kills in range(1, 4):
            while writer.is_alive() and len(done) < 10 * kills:
                writer.join(0.01)
            own_postgres.kill()
            own_postgres.start()
        writer.join(120)
        assert (failed, len(done)) == ([], 60)
        assert counted(gallery) == (60 * BATCH, 60 * BATCH, 60)
        assert len(gallery) == 60 * BATCH
        assert not gallery.missing([clip for number in range(60) for clip in batch(number)[0]])


def test_a_server_that_is_away_is_one_line_and_one_that_is_back_is_found(own_postgres):
    place = own_postgres.place()
    with (
        open_or_create(place, **MADE) as writer,
        PostgresGallery.open(place, writable=True, patience_s=0.5) as impatient,
        open_gallery(place) as reader,
    ):
        writer.ingest(*batch(0))
        assert len(reader) == len(impatient) == BATCH
        own_postgres.stop()
        for verb in (
            lambda: len(reader),
            reader.is_newest,
            lambda: reader.search(batch(0)[1], 1),
            lambda: impatient.ingest(*batch(1)),
            lambda: open_gallery(place),
            lambda: open_or_create(place, **MADE),
        ):
            with pytest.raises(
                GalleryAwayError, match=r"gallery postgresql://.* cannot be reached: "
            ) as error:
                verb()
            assert "\n" not in str(error.value)
        own_postgres.start()
        assert len(reader) == BATCH
        impatient.ingest(*batch(1))
        assert len(reader) == 2 * BATCH


def many(rng, count):
    clips = [batch(number, 1)[0][0] for number in range(count)]
    return clips, unit(rng.standard_normal((count, E))), rng.random((count, F), np.float32)


def test_a_large_gallery_is_searched_through_a_graph(postgres):
    rng, place = np.random.default_rng(0), postgres.place()
    queries = unit(rng.standard_normal((20, E)))
    open_or_create(place, **MADE).close()
    with PostgresGallery.open(place, writable=True, approximate_from=400) as gallery:
        clips, embeddings, weights = many(rng, 600)
        gallery.ingest(clips[:300], embeddings[:300], weights[:300])
        gallery.compact()
        assert indexes(gallery) == []
        gallery.ingest(clips[300:500], embeddings[300:500], weights[300:500])
        gallery.compact()
        gallery.compact()
        assert indexes(gallery) == [True]
        gallery.ingest(
            clips[500:], embeddings[500:], weights[500:]
        )  # which PostgreSQL adds to the graph
        with PostgresGallery.open(place) as exact:
            expected, similarity = exact.search(queries, 10)
            found, values = gallery.search(queries, 10)
            assert scans(gallery) > 0
            shared = [len({*one} & {*other}) for one, other in zip(found, expected, strict=True)]
            assert np.mean(shared) > 9.8
            same = found == expected
            np.testing.assert_array_equal(values[same], similarity[same])
            # A graph that leads to fewer than there are is not the last word.
            gallery.remove([clip.video for clip in clips[100:595]])
            assert gallery.search(queries, 105)[0].shape == (20, 105)
            np.testing.assert_array_equal(
                gallery.search(queries, 105)[0], exact.search(queries, 105)[0]
            )
        with pytest.raises(GalleryError, match="the filter"):
            gallery.search(queries, 10, "nothing = 1")


def indexes(gallery):
    query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('clips_by_embedding')"
    return [is_valid for (is_valid,) in gallery._records.rows(query)]


def scans(gallery):
    gallery._records.rows("SELECT pg_stat_clear_snapshot()")
    gallery._connections.drop()  # what a connection has counted is told when it ends
    for _ in range(100):
        ((count,),) = gallery._records.rows(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'clips_by_embedding' "
            "AND schemaname = current_schema()"
        )
        if count:
            break
    return count


def test_a_graph_that_a_killed_build_left_is_made_anew(postgres):
    place = postgres.place()
    open_or_create(place, **MADE).close()
    with PostgresGallery.open(place, writable=True, approximate_from=1) as gallery:
        gallery.ingest(*batch(0))
        gallery.compact()
        with postgres.connect() as connection:
            connection.execute(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
                (f'"dgl_{place.gallery}".clips_by_embedding',),
            )
        assert indexes(gallery) == [False]
        assert gallery.search(batch(0)[1], 2)[0].shape == (BATCH, 2)
        gallery.compact()
        assert indexes(gallery) == [True]


def test_a_wrong_password_is_one_line_that_does_not_hold_it(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "a-wrong-one")
    with pytest.raises(GalleryError, match="password authentication failed") as error:
        open_gallery(postgres.place())
    assert not isinstance(error.value, GalleryAwayError)
    monkeypatch.delenv("PGPASSWORD")
    text = postgres.address().replace("postgres@", "postgres:also-wrong@")
    with pytest.raises(GalleryError, match="password authentication failed") as error:
        open_gallery(read_place(text))
    assert "also-wrong" not in f"{error.value} {read_place(text)!r} {read_place(text)}"


def test_a_password_may_stand_in_a_file_or_in_the_address(postgres, monkeypatch, tmp_path):
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "pgpass"
    file.write_text("127.0.0.1:*:*:postgres:a-secret-of-tests\n")
    file.chmod(0o600)
    name = "of_a_file"
    open_or_create(read_place(postgres.address(name, passfile=str(file))), **MADE).close()
    monkeypatch.setenv("PGPASSFILE", str(file))
    open_gallery(postgres.place(name)).close()
    monkeypatch.delenv("PGPASSFILE")
    text = postgres.address(name).replace("postgres@", "postgres:a-secret-of-tests@")
    with open_gallery(read_place(text)) as gallery:
        assert "a-secret" not in f"{gallery.address} {gallery.facts}"
        assert read_place(text).has_password


def test_options_of_the_address_reach_the_server(postgres):
    with pytest.raises(GalleryError, match="SSL"):
        open_gallery(read_place(postgres.address(sslmode="require")))
    place = read_place(postgres.address(application_name="films"))
    with open_or_create(place, **MADE) as gallery:
        assert gallery._records.rows("SHOW application_name") == [("films",)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://u:a@b@host/db?gallery=x", "one @ before the host"),
        ("postgresql://u:a/b@host/db?gallery=x", "one @ before the host"),
        ("postgresql://u:a?b@host/db?gallery=x", "one @ before the host"),
        ("postgresql://host/db", "must name one gallery, got 0"),
        ("postgresql://host/db?gallery=a&gallery=b", "must name one gallery, got 2"),
        ("postgresql://host/db?gallery=a b", "must name one gallery"),
        ("postgres://host/db?gallery=", "must name one gallery"),
    ],
)
def test_an_address_that_is_none_is_refused(text, told):
    with pytest.raises(GalleryError, match=told):
        read_place(text)


def test_an_address_with_an_option_that_libpq_does_not_know_is_refused(postgres):
    with pytest.raises(GalleryError, match="sslmod"):
        open_gallery(read_place(postgres.address(sslmod="require")))


def test_an_address_is_shown_without_its_secrets():
    place = read_place("postgres://me:hush@host:5/db?sslmode=require&password=hush&gallery=a-B_1")
    assert str(place) == "postgresql://me@host:5/db?sslmode=require&gallery=a-B_1"
    assert (place.gallery, place.has_password) == ("a-B_1", True)
    assert "hush" not in repr(place)
    assert not read_place("postgresql:///db?host=/run&gallery=a").has_password


def test_a_gallery_of_another_version_is_refused(postgres):
    place = postgres.place()
    open_or_create(place, **MADE).close()
    with postgres.connect() as connection:
        connection.execute(f'UPDATE "dgl_{place.gallery}".header SET schema_version = 9')
    with pytest.raises(GalleryError, match="has schema version 9, this build reads 1"):
        open_gallery(place)


def test_a_user_who_may_only_read_searches_and_does_not_write(postgres):
    place = postgres.place()
    with open_or_create(place, **MADE) as gallery, postgres.connect() as connection:
        gallery.ingest(*batch(0))
        schema = f'"dgl_{place.gallery}"'
        connection.execute(f"CREATE ROLE viewer LOGIN PASSWORD '{os.environ['PGPASSWORD']}'")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO viewer")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO viewer")
    theirs = read_place(postgres.address(place.gallery, user="viewer"))
    with open_gallery(theirs, writable=True) as gallery:
        assert gallery.search(batch(0)[1], 1, "start_s < 60")[0].shape == (BATCH, 1)
        with pytest.raises(GalleryError, match=r"refuses: permission denied .* Use a user who may"):
            gallery.ingest(*batch(1))
        assert len(gallery) == BATCH
    with pytest.raises(GalleryError, match="refuses: permission denied"):
        open_or_create(read_place(postgres.address(user="viewer")), **MADE)
