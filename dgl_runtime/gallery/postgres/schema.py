"""The tables of a gallery, in a schema of their own, and how they are made once."""

import os
from typing import Any

import psycopg
from psycopg import errors, sql

from dgl_runtime.errors import GalleryError, reason_of
from dgl_runtime.gallery.clips import Header

Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMA_VERSION = 1
MOST_INDEXED = 2_000  # numbers of an embedding that pgvector's HNSW takes
_MOST_IN_PLACE = 1_900  # that fit in a row of a page of 8 kB
# What a killed creation or two at once would leave half done is made under this lock.
_CREATION = 0x64676C67
_CANNOT_ADD = (errors.InsufficientPrivilege, errors.UndefinedFile, errors.FeatureNotSupported)
_TABLES = """
CREATE TABLE header (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    schema_version integer NOT NULL, bundle_id text NOT NULL, bundle_path bytea NOT NULL,
    embed_dim integer NOT NULL, num_frames integer NOT NULL, num_clips bigint NOT NULL,
    num_videos bigint NOT NULL, version bigint NOT NULL
);
CREATE TABLE videos (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, content_sha256 text NOT NULL UNIQUE,
    duration_s double precision NOT NULL, metadata jsonb
);
CREATE TABLE files (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, path bytea NOT NULL, name text NOT NULL,
    video_id bigint NOT NULL REFERENCES videos, size bigint, mtime_ns bigint
);
CREATE UNIQUE INDEX files_by_path ON files (sha256(path));
CREATE INDEX files_by_video ON files (video_id);
CREATE TABLE clips (
    id bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 0 START WITH 0) PRIMARY KEY,
    video_id bigint NOT NULL REFERENCES videos,
    start_s double precision NOT NULL, end_s double precision NOT NULL,
    embedding vector({embed_dim}) NOT NULL, frame_weights real[] NOT NULL,
    UNIQUE (video_id, start_s, end_s)
);
CREATE TABLE cuts (
    video_id bigint NOT NULL REFERENCES videos, cutting text NOT NULL,
    PRIMARY KEY (video_id, cutting)
);
CREATE TABLE metadata_columns (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE,
    is_number boolean NOT NULL
);
"""
_IN_PLACE = "ALTER TABLE clips ALTER COLUMN embedding SET STORAGE PLAIN"


def schema_of(gallery: str) -> str:
    """The name of the schema that holds a gallery."""
    return f"dgl_{gallery}"


def index_of(gallery: str) -> str:
    """The name of the graph over a gallery's embeddings, as SQL has it."""
    return f'"{schema_of(gallery)}".clips_by_embedding'


def set_search_path(connection: Connection, gallery: str) -> bool:
    """Have names mean the gallery's tables and pgvector's; whether pgvector is there."""
    query = """SELECT set_config('search_path', concat_ws(', ', quote_ident(%s), quote_ident(nspname)), false)
        FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"""
    return connection.execute(query, (schema_of(gallery),)).fetchone() is not None


def is_there(connection: Connection, gallery: str) -> bool:
    """Whether the database holds a gallery of this name."""
    query = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = 'header'"
    return connection.execute(query, (schema_of(gallery),)).fetchone() is not None


def create(connection: Connection, gallery: str, header: Header) -> None:
    """Make an empty gallery, unless it is there; in a transaction.

    Raises:
        GalleryError: The database has no pgvector, and this user may not add it.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATION,))
    if is_there(connection, gallery):
        return
    if not set_search_path(connection, gallery):
        try:
            connection.execute("CREATE EXTENSION vector SCHEMA public")
        except _CANNOT_ADD as error:
            raise GalleryError(
                f"the database has no pgvector, and it could not be added: {reason_of(error)}. Have an "
                "administrator install it and run in this database: CREATE EXTENSION vector"
            ) from error
        set_search_path(connection, gallery)
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema_of(gallery))))
    tables = _TABLES.format(embed_dim=int(header.embed_dim))
    connection.execute(tables)
    if header.embed_dim <= _MOST_IN_PLACE:  # else every search fetches each from another table
        connection.execute(_IN_PLACE)
    connection.execute(
        "INSERT INTO header VALUES (true, %s, %s, %s, %s, %s, 0, 0, 0)",
        (
            SCHEMA_VERSION,
            header.bundle_id,
            os.fsencode(header.bundle_path),
            header.embed_dim,
            header.num_frames,
        ),
    )
