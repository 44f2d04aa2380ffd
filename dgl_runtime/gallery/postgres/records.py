"""The records of a gallery in PostgreSQL: its videos, their files, its clips.

Writers meet in the database alone. Keys are content and span, so what two of them write is there once;
a change counts itself in ``header``, whose row is locked last and for as long as the commit takes.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Clip, FileState, Found, Header, Known, Value, Video
from dgl_runtime.gallery.metadata import merge_columns
from dgl_runtime.gallery.postgres.connection import Connections
from dgl_runtime.gallery.postgres.schema import SCHEMA_VERSION, Connection
from dgl_runtime.gallery.vector_store import Float32
from dgl_runtime.names import nfc

_CHANGING = 0x64676C69  # the lock of those who change the gallery
_LOOK_UP = """
SELECT clips.id, videos.id,
    (SELECT path FROM files WHERE files.video_id = videos.id ORDER BY files.id LIMIT 1),
    content_sha256, start_s, end_s, duration_s, metadata, frame_weights
FROM clips JOIN videos ON videos.id = clips.video_id WHERE clips.id = ANY(%s)
"""
_VIDEOS = """
SELECT id, content_sha256, duration_s,
    ARRAY(SELECT path FROM files WHERE video_id = videos.id ORDER BY id),
    ARRAY(SELECT size FROM files WHERE video_id = videos.id ORDER BY id),
    ARRAY(SELECT mtime_ns FROM files WHERE video_id = videos.id ORDER BY id),
    ARRAY(SELECT cutting FROM cuts WHERE video_id = videos.id ORDER BY cutting),
    metadata,
    ARRAY(SELECT id FROM clips WHERE video_id = videos.id ORDER BY id)
FROM videos WHERE id > %s ORDER BY id LIMIT %s
"""
_KNOWN = """
SELECT number, content_sha256,
    (SELECT count(*) FROM clips WHERE clips.video_id = videos.id),
    EXISTS (SELECT 1 FROM cuts WHERE cuts.video_id = videos.id AND cutting = %s)
FROM unnest(%s::bytea[], %s::bigint[], %s::bigint[]) WITH ORDINALITY AS asked (path, size, mtime_ns, number)
JOIN files ON sha256(files.path) = sha256(asked.path) AND files.size = asked.size
    AND files.mtime_ns = asked.mtime_ns
JOIN videos ON videos.id = files.video_id
"""
_MISSING = """
SELECT number FROM unnest(%s::text[], %s::float8[], %s::float8[])
    WITH ORDINALITY AS asked (content, start_s, end_s, number)
WHERE NOT EXISTS (SELECT 1 FROM videos JOIN clips ON clips.video_id = videos.id
    WHERE content_sha256 = content AND clips.start_s = asked.start_s AND clips.end_s = asked.end_s)
ORDER BY number
"""
_PLACE = """
INSERT INTO files (path, name, video_id, size, mtime_ns) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (sha256(path)) DO
"""
_REPLACE = f"""{_PLACE} UPDATE SET video_id = excluded.video_id, size = excluded.size,
    mtime_ns = excluded.mtime_ns"""
_ADD = """
INSERT INTO clips (video_id, start_s, end_s, embedding, frame_weights) VALUES (%s, %s, %s, %s, %s::real[])
ON CONFLICT (video_id, start_s, end_s) DO NOTHING
"""


class Records:
    """Those of one gallery. Threads may share them."""

    def __init__(self, connections: Connections, address: str) -> None:
        self._connections, self._address = connections, address

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one SELECT."""
        return self._connections.read(
            lambda connection: connection.execute(query, values).fetchall()
        )

    # ---- reading ------------------------------------------------------------------------------

    def state(self) -> tuple[Header, int]:
        """What the gallery is of, and how many clips it holds.

        Raises:
            GalleryError: It was written by another version.
        """
        query = """SELECT schema_version, bundle_id, bundle_path, embed_dim, num_frames, num_clips, version,
            coalesce((SELECT max(id) + 1 FROM clips), 0) FROM header"""
        ((schema, bundle_id, path, embed_dim, num_frames, num_clips, version, num_rows),) = (
            self.rows(query)
        )
        if schema != SCHEMA_VERSION:
            raise GalleryError(
                f"gallery {self._address} has schema version {schema}, this build reads {SCHEMA_VERSION}. "
                "Index the videos into a new one, or install the version that wrote it."
            )
        header = Header(
            bundle_id, os.fsdecode(path), embed_dim, num_frames, num_rows, version=version
        )
        return header, num_clips

    def count_videos(self) -> int:
        """How many videos have been looked into."""
        ((count,),) = self.rows("SELECT num_videos FROM header")
        return int(count)

    def typical_length_s(self) -> float | None:
        """How long the clips are that were added last, seconds; None: there are none."""
        last = self.rows("SELECT end_s - start_s FROM clips ORDER BY id DESC LIMIT 100")
        return float(np.median([length for (length,) in last])) if last else None

    def columns(self) -> dict[str, bool]:
        """What is known of videos beside the files, and whether a column holds numbers alone."""
        return dict(self.rows("SELECT name, is_number FROM metadata_columns ORDER BY id"))

    def metadata_columns(self) -> list[str]:
        """What is known of videos beside the files."""
        return list(self.columns())

    def videos(self, after: int, count: int) -> list[Video]:
        """Up to ``count`` videos whose numbers lie above ``after``, in their order."""
        names = self.metadata_columns()
        return [
            Video(
                *(number, content, duration_s),
                tuple(
                    FileState(os.fsdecode(path), *rest)
                    for path, *rest in zip(paths, sizes, times, strict=True)
                ),
                tuple(cuts),
                {} if metadata is None else {name: metadata.get(name) for name in names},
                tuple(rows),
            )
            for number, content, duration_s, paths, sizes, times, cuts, metadata, rows in self.rows(
                _VIDEOS, (after, count)
            )
        ]

    def look_up(self, rows: Iterable[int]) -> dict[int, Found]:
        """What is known of some rows, those left out that are of no clip."""
        names = self.metadata_columns()
        found: dict[int, Found] = {}
        for row, video_id, path, *rest, metadata, weights in self.rows(_LOOK_UP, (list(rows),)):
            clip = Clip(os.fsdecode(path), *rest)
            values = {} if metadata is None else {name: metadata.get(name) for name in names}
            found[row] = Found(clip, video_id, values, np.array(weights, np.float32))
        return found

    def known(self, files: Sequence[FileState], segmentation: str) -> list[Known]:
        """What is known of each file, if it has not changed since it was placed."""
        paths = [os.fsencode(file.path) for file in files]
        values = paths, [file.size for file in files], [file.mtime_ns for file in files]
        found = {
            number: Known(content, num_clips, is_complete)
            for number, content, num_clips, is_complete in self.rows(
                _KNOWN, (segmentation, *values)
            )
        }
        return [found.get(number, Known()) for number in range(1, len(files) + 1)]

    def missing(self, clips: Sequence[Clip]) -> list[int]:
        """Numbers of the clips that are not there."""
        keys = [list(column) for column in zip(*(clip.key for clip in clips), strict=True)]
        return [number - 1 for (number,) in self.rows(_MISSING, keys)] if clips else []

    def files(self, video: int | str | None = None) -> list[FileState]:
        """All files, or those of a video by its number or its content, as they were when they were placed."""
        query = "SELECT path, size, mtime_ns FROM files JOIN videos ON videos.id = video_id"
        values: tuple[int | str, ...] = ()
        if video is not None:
            query += f" WHERE {'content_sha256' if isinstance(video, str) else 'videos.id'} = %s"
            values = (video,)
        found = self.rows(f"{query} ORDER BY files.id", values)
        return [FileState(os.fsdecode(path), *rest) for path, *rest in found]

    def by_file(self) -> dict[str, int]:
        """The number of the video that each file holds."""
        return {
            os.fsdecode(path): video
            for path, video in self.rows("SELECT path, video_id FROM files")
        }

    # ---- writing ------------------------------------------------------------------------------

    def append(self, clips: Sequence[Clip], embeddings: Float32, frame_weights: Float32) -> None:
        """Commit clips with their vectors, those that are not there."""

        def add(connection: Connection) -> None:
            _begin(connection, is_alone=False)
            durations = {clip.content_sha256: clip.duration_s for clip in clips}
            videos = {
                content: _video_id(connection, content, durations[content])
                for content in sorted(durations)
            }
            for path, content in sorted({(clip.video, clip.content_sha256) for clip in clips}):
                place = (*_named(path), videos[content][0], None, None)
                connection.execute(f"{_PLACE} NOTHING", place)
            # Another writer may have seen since that the file holds another content.
            held = _in_files(connection, [number for number, _ in videos.values()])
            rows = [
                (number, *clip.key[1:], embedding, weights.tolist())
                for clip, embedding, weights in zip(clips, embeddings, frame_weights, strict=True)
                if (number := videos[clip.content_sha256][0]) in held
            ]
            added = 0
            with connection.cursor() as cursor:
                if rows:
                    cursor.executemany(_ADD, rows)
                    added = cursor.rowcount
            lost = [number for number, is_new in videos.values() if is_new and number not in held]
            connection.execute("DELETE FROM videos WHERE id = ANY(%s)", (lost,))
            _count(connection, added, sum(is_new for _, is_new in videos.values()) - len(lost))

        self._connections.change(add)

    def upsert(self, file: FileState, content_sha256: str, duration_s: float) -> None:
        """Say what a file holds now; a video that is in no file any more loses its clips."""

        def place(connection: Connection) -> None:
            _begin(connection, is_alone=True)
            video_id, is_new = _video_id(connection, content_sha256, duration_s)
            path, name = _named(file.path)
            query = "SELECT video_id FROM files WHERE sha256(path) = sha256(%s) FOR UPDATE"
            held = [number for (number,) in connection.execute(query, (path,))]
            connection.execute(_REPLACE, (path, name, video_id, file.size, file.mtime_ns))
            dropped, gone = _drop_videos_without_files(connection, held)
            _count(connection, -dropped, is_new - gone)

        self._connections.change(place)

    def finish(self, content_sha256: str, segmentation: str) -> None:
        """Say that a video was indexed to its end with this segmentation."""
        query = """INSERT INTO cuts SELECT id, %s FROM videos WHERE content_sha256 = %s
            ON CONFLICT DO NOTHING"""

        def say(connection: Connection) -> None:
            connection.execute(query, (segmentation, content_sha256))
            _count(connection)

        self._connections.change(say)

    def remove(self, paths: Iterable[str]) -> None:
        """Files that are not there any more; a video that was in no other loses its clips."""
        names = [os.fsencode(path) for path in paths]
        query = """DELETE FROM files WHERE sha256(path) IN (SELECT sha256(one) FROM unnest(%s::bytea[]) AS one)
            RETURNING video_id"""

        def forget(connection: Connection) -> None:
            _begin(connection, is_alone=True)
            held = [number for (number,) in connection.execute(query, (names,))]
            dropped, gone = _drop_videos_without_files(connection, held)
            _count(connection, -dropped, -gone)

        self._connections.change(forget)

    def numbers_of(self, contents: Iterable[str]) -> dict[str, int]:
        """The numbers of videos, by their contents."""
        query = "SELECT content_sha256, id FROM videos WHERE content_sha256 = ANY(%s)"
        return dict(self.rows(query, (list(contents),)))

    def write_metadata(
        self,
        columns: Mapping[str, bool],
        found: Mapping[int, Sequence[Value]],
        source: object,
    ) -> None:
        """Say what is known of videos, by their number, in place of what was known before.

        Args:
            columns: Their names, and whether they hold numbers alone.
            found: A value for each column.
            source: What they are of, for messages.
        """

        def write(connection: Connection) -> None:
            connection.execute("LOCK TABLE metadata_columns IN SHARE ROW EXCLUSIVE MODE")
            query = "SELECT name, is_number FROM metadata_columns ORDER BY id"
            known: dict[str, bool] = dict(connection.execute(query).fetchall())
            stored, _ = merge_columns(list(columns), known, source)
            with connection.cursor() as cursor:
                cursor.executemany(
                    """INSERT INTO metadata_columns (name, is_number) VALUES (%s, %s) ON CONFLICT (name)
                    DO UPDATE SET is_number = metadata_columns.is_number AND excluded.is_number""",
                    list(zip(stored, columns.values(), strict=True)),
                )
                cursor.executemany(
                    "UPDATE videos SET metadata = %s WHERE id = %s",
                    [
                        (Jsonb(dict(zip(stored, values, strict=True))), video_id)
                        for video_id, values in sorted(found.items())
                    ],
                )
            _count(connection)

        self._connections.change(write)


def _begin(connection: Connection, *, is_alone: bool) -> None:
    """Let clips be added by many at once, but not while files change hands: these would wait in circles."""
    lock = "pg_advisory_xact_lock" if is_alone else "pg_advisory_xact_lock_shared"
    connection.execute(f"SELECT {lock}(%s, hashtext(current_schema()))", (_CHANGING,))


def _named(path: str) -> tuple[bytes, str]:
    """A path as it is, and as conditions have it: text in NFC."""
    return os.fsencode(path), nfc(path.encode("utf-8", "replace").decode())


def _video_id(connection: Connection, content_sha256: str, duration_s: float) -> tuple[int, bool]:
    """The number of a video, which stays until the transaction ends, and whether it is new."""
    find = "SELECT id FROM videos WHERE content_sha256 = %s FOR KEY SHARE"
    if (found := connection.execute(find, (content_sha256,)).fetchone()) is not None:
        return found[0], False
    insert = """INSERT INTO videos (content_sha256, duration_s) VALUES (%s, %s)
        ON CONFLICT (content_sha256) DO UPDATE SET duration_s = videos.duration_s
        RETURNING id, xmax = 0"""
    made = connection.execute(insert, (content_sha256, float(duration_s))).fetchone()
    assert made is not None
    return made[0], made[1]


def _in_files(connection: Connection, video_ids: Sequence[int]) -> set[int]:
    """Those of some videos that files hold."""
    query = "SELECT DISTINCT video_id FROM files WHERE video_id = ANY(%s)"
    return {number for (number,) in connection.execute(query, (list(video_ids),))}


def _drop_videos_without_files(connection: Connection, video_ids: Sequence[int]) -> tuple[int, int]:
    """Drop those of some videos that no file holds; how many clips and videos went."""
    if not video_ids:
        return 0, 0
    # Who places a file of one holds it; from here on nobody does.
    lock = "SELECT id FROM videos WHERE id = ANY(%s) ORDER BY id FOR UPDATE"
    held = [number for (number,) in connection.execute(lock, (list(video_ids),))]
    unused = """SELECT one FROM unnest(%s::bigint[]) AS one
        WHERE NOT EXISTS (SELECT 1 FROM files WHERE video_id = one)"""
    gone = [number for (number,) in connection.execute(unused, (held,))]
    dropped = connection.execute("DELETE FROM clips WHERE video_id = ANY(%s)", (gone,)).rowcount
    connection.execute("DELETE FROM cuts WHERE video_id = ANY(%s)", (gone,))
    connection.execute("DELETE FROM videos WHERE id = ANY(%s)", (gone,))
    return dropped, len(gone)


def _count(connection: Connection, clips: int = 0, videos: int = 0) -> None:
    """Count a change, last of all."""
    query = """UPDATE header SET version = version + 1, num_clips = num_clips + %s,
        num_videos = num_videos + %s"""
    connection.execute(query, (clips, videos))
