"""The records of a gallery: its videos, their files, its clips.

They are the truth: a row of the vector files belongs to a clip only if it is said here. Whatever
changes, changes in a transaction, so a crash leaves the state before or after.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Clip, FileState, Header, Known, Value, Video
from dgl_runtime.gallery.folder import RECORDS
from dgl_runtime.gallery.sqlite import (
    APPLICATION,
    SCHEMA,
    SCHEMA_VERSION,
    connect,
    damaged,
    faults_of,
    open_reader,
    open_writer,
    require_ours,
)

_CLIPS = """
SELECT row, video_id,
    (SELECT path FROM files WHERE files.video_id = videos.id ORDER BY rowid LIMIT 1),
    content_sha256, start_s, end_s, duration_s
FROM clips JOIN videos ON videos.id = clips.video_id WHERE row IN (SELECT value FROM json_each(?))
"""


class Records:
    """The open file. Threads may share it."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self._folder = folder
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def create(cls, folder: Path, header: Header) -> "Records":
        """Write the file of an empty gallery; a crash leaves none that opens."""
        temporary = folder / (RECORDS + ".tmp")
        temporary.unlink(missing_ok=True)
        with faults_of(folder):
            connection = connect(temporary, "mode=rwc")
            try:
                connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
                values = (
                    header.bundle_id,
                    os.fsencode(header.bundle_path),
                    header.embed_dim,
                    header.num_frames,
                    header.num_rows,
                    header.generation,
                    header.version,
                )
                connection.execute("INSERT INTO header VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            finally:
                connection.close()
            temporary.replace(folder / RECORDS)
        return cls.open(folder, writable=True)

    @classmethod
    def open(cls, folder: Path, *, writable: bool) -> "Records":
        """Open for reading one state, or for writing.

        Raises:
            GalleryError: Missing, damaged, or of another version.
        """
        path = folder / RECORDS
        if not path.is_file():
            raise GalleryError(
                f"{folder} is not a gallery: it has no {RECORDS}. Name a folder that dgl-index wrote."
            )
        with faults_of(folder):
            connection = open_writer(path) if writable else open_reader(path)
            try:
                require_ours(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(folder, connection)

    def close(self) -> None:
        """Close the file; what is committed is there."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    # ---- reading ------------------------------------------------------------------------------

    def header(self) -> Header:
        """What the gallery is of, in the state that is read.

        Raises:
            GalleryError: It is not what was written.
        """
        found = self.rows("SELECT * FROM header")
        if len(found) != 1 or len(found[0]) != len(fields(Header)):
            raise damaged(self._folder / RECORDS, f"its header has {len(found)} rows, expected 1")
        bundle_id, bundle_path, *numbers = found[0]
        fits = isinstance(bundle_id, str) and isinstance(bundle_path, bytes)
        if not fits or any(not isinstance(n, int) or n < 0 for n in numbers) or 0 in numbers[:2]:
            raise damaged(self._folder / RECORDS, f"its header says {found[0]}")
        return Header(bundle_id, os.fsdecode(bundle_path), *numbers)

    def newest_version(self) -> int:
        """The version that a reader who opens now would see."""
        with faults_of(self._folder), closing(open_reader(self._folder / RECORDS)) as connection:
            (version,) = connection.execute("SELECT version FROM header").fetchone()
        return int(version)

    def look_up(self, rows: Iterable[int]) -> dict[int, tuple[Clip, int]]:
        """The clips of some rows, each with the number of its video.

        Raises:
            IndexError: A row belongs to no clip.
            GalleryError: A record is damaged.
        """
        rows = list(rows)
        clips = {}
        for row, video_id, path, content, *times in self.rows(_CLIPS, (json.dumps(rows),)):
            try:
                clips[row] = Clip(os.fsdecode(path), content, *times), video_id
            except (ValueError, TypeError) as error:
                raise damaged(self._folder / RECORDS, f"row {row} is no clip ({error})") from error
        if missing := set(rows) - clips.keys():
            raise IndexError(f"no clip has row {min(missing)}.")
        return clips

    def has(self, content_sha256: str, start_s: float, end_s: float) -> bool:
        """Whether this span of a video with this content is there, to the last bit."""
        query = """SELECT 1 FROM clips JOIN videos ON videos.id = video_id
            WHERE content_sha256 = ? AND start_s = ? AND end_s = ?"""
        return bool(self.rows(query, (content_sha256, start_s, end_s)))

    def dead_rows(self) -> NDArray[np.int64]:
        """Rows of the vector files that belong to no clip any more, ascending."""
        found = self.rows("SELECT row FROM dead_rows ORDER BY row")
        return np.array([row for (row,) in found], np.int64)

    def known(self, state: FileState, segmentation: str) -> Known:
        """What is known of a file, if it has not changed since it was placed."""
        query = """SELECT content_sha256,
                (SELECT count(*) FROM clips WHERE clips.video_id = videos.id),
                EXISTS (SELECT 1 FROM cuts WHERE cuts.video_id = videos.id AND cutting = ?)
            FROM files JOIN videos ON videos.id = video_id
            WHERE path = ? AND size = ? AND mtime_ns = ?"""
        values = (segmentation, os.fsencode(state.path), state.size, state.mtime_ns)
        for content, num_clips, is_complete in self.rows(query, values):
            return Known(content, num_clips, bool(is_complete))
        return Known()

    def count_videos(self) -> int:
        """How many videos have been looked into."""
        count: int = self.rows("SELECT count(*) FROM videos")[0][0]
        return count

    def files(self, video: int | str | None = None) -> list[FileState]:
        """All files, or those of a video by its number or its content, as they were when they were placed."""
        query = "SELECT path, size, mtime_ns FROM files JOIN videos ON videos.id = video_id"
        values: tuple[int | str, ...] = ()
        if video is not None:
            query += f" WHERE {'content_sha256' if isinstance(video, str) else 'videos.id'} = ?"
            values = (video,)
        found = self.rows(f"{query} ORDER BY files.rowid", values)
        return [FileState(os.fsdecode(path), *rest) for path, *rest in found]

    def numbers_of(self, contents: Iterable[str]) -> dict[str, int]:
        """The numbers of videos, by their contents."""
        query = """SELECT content_sha256, id FROM videos
            WHERE content_sha256 IN (SELECT value FROM json_each(?))"""
        return dict(self.rows(query, (json.dumps(list(contents)),)))

    def videos(self, after: int, count: int) -> list[Video]:
        """Up to ``count`` videos whose numbers lie above ``after``, in their order."""
        query = "SELECT id, content_sha256, duration_s FROM videos WHERE id > ? ORDER BY id LIMIT ?"
        found = self.rows(query, (after, count))
        numbers = [number for number, *_ in found]
        files = self._by_video("path, size, mtime_ns", "files", "rowid", numbers)
        cuts = self._by_video("cutting", "cuts", "cutting", numbers)
        clips = self._by_video("row", "clips", "row", numbers)
        metadata = self.metadata_of(numbers, self.metadata_columns())
        return [
            Video(
                *(number, content, duration_s),
                tuple(FileState(os.fsdecode(path), *rest) for path, *rest in files[number]),
                tuple(cut for (cut,) in cuts[number]),
                metadata.get(number, {}),
                tuple(row for (row,) in clips[number]),
            )
            for number, content, duration_s in found
        ]

    def _by_video(
        self, columns: str, table: str, order: str, numbers: Sequence[int]
    ) -> dict[int, list[list[Any]]]:
        """Rows of a table, by the number of their video."""
        query = f"""SELECT video_id, {columns} FROM {table}
            WHERE video_id IN (SELECT value FROM json_each(?)) ORDER BY {order}"""
        found: dict[int, list[list[Any]]] = {number: [] for number in numbers}
        for number, *row in self.rows(query, (json.dumps(list(numbers)),)):
            found[number].append(row)
        return found

    def metadata_of(
        self, video_ids: Iterable[int], names: Sequence[str]
    ) -> dict[int, dict[str, Value]]:
        """What the metadata, whose columns have these names, says of videos; of some it says nothing."""
        if not names:
            return {}
        query = "SELECT * FROM metadata WHERE video_id IN (SELECT value FROM json_each(?))"
        found = self.rows(query, (json.dumps(list(video_ids)),))
        return {number: dict(zip(names, values, strict=True)) for number, *values in found}

    def typical_length_s(self) -> float | None:
        """How long the clips are that were added last, seconds; None: there are none."""
        last = "SELECT end_s - start_s FROM clips ORDER BY row DESC LIMIT 100"
        lengths = [length for (length,) in self.rows(last)]
        return float(np.median(lengths)) if lengths else None

    def metadata_columns(self) -> list[str]:
        """What is known of videos beside the files."""
        found = self.rows("SELECT name FROM pragma_table_info('metadata')")[1:]
        return [name.strip() for (name,) in found]

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock:
            yield self._connection

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """All rows of one SELECT."""
        with self.reading() as connection, faults_of(self._folder):
            return connection.execute(query, values).fetchall()

    # ---- writing ------------------------------------------------------------------------------

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or nothing after an exception or a crash."""
        with self._lock, faults_of(self._folder):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("UPDATE header SET version = version + 1")
                self._connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if not isinstance(error, sqlite3.OperationalError):
                    raise
                ((kept,),) = self._connection.execute("SELECT count(*) FROM clips").fetchall()
                raise GalleryError(
                    f"gallery {self._folder} could not take a change: {error}. "
                    f"It keeps the {kept} clips it had; make room, then append again."
                ) from error

    def append(self, clips: Sequence[Clip], first_row: int) -> None:
        """Commit clips whose vectors lie from ``first_row`` on.

        Raises:
            ValueError: A clip is there already.
            GalleryError: Somebody else has written the file, or the disk refused.
        """
        with self.change() as connection:
            self._require_rows(connection, first_row)
            for row, clip in enumerate(clips, first_row):
                video_id = _video_id(connection, clip.content_sha256, clip.duration_s)
                connection.execute(
                    "INSERT INTO files (path, video_id) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (os.fsencode(clip.video), video_id),
                )
                values = (row, video_id, float(clip.start_s), float(clip.end_s))
                try:
                    connection.execute("INSERT INTO clips VALUES (?, ?, ?, ?)", values)
                except sqlite3.IntegrityError as error:
                    raise ValueError(
                        f"clip {clip.start_s} to {clip.end_s} s of {clip.video!r} would be in gallery "
                        f"{self._folder} twice. Ask missing() before you ingest."
                    ) from error
            connection.execute("UPDATE header SET num_rows = num_rows + ?", (len(clips),))

    def _require_rows(self, connection: sqlite3.Connection, expected: int) -> None:
        (found,) = connection.execute("SELECT num_rows FROM header").fetchone()
        if found != expected:
            raise GalleryError(
                f"gallery {self._folder} was changed behind this writer: it has {found} rows, not "
                f"{expected}. Open it again."
            )

    def upsert(self, state: FileState, content_sha256: str, duration_s: float) -> list[int]:
        """Say what a file holds now; a video that is in no file any more loses its clips.

        Returns:
            The rows of these.
        """
        path = os.fsencode(state.path)
        with self.change() as connection:
            before = connection.execute("SELECT video_id FROM files WHERE path = ?", (path,))
            held = [number for (number,) in before]
            video_id = _video_id(connection, content_sha256, duration_s)
            connection.execute(
                """INSERT INTO files VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
                SET video_id = excluded.video_id, size = excluded.size, mtime_ns = excluded.mtime_ns""",
                (path, video_id, state.size, state.mtime_ns),
            )
            return _drop_videos_without_files(connection, held)

    def finish(self, content_sha256: str, segmentation: str) -> None:
        """Say that a video was indexed to its end with this segmentation."""
        with self.change() as connection:
            connection.execute(
                """INSERT INTO cuts SELECT id, ? FROM videos WHERE content_sha256 = ?
                ON CONFLICT DO NOTHING""",
                (segmentation, content_sha256),
            )

    def remove(self, paths: Iterable[str]) -> list[int]:
        """Files that are not there any more; a video that was in no other loses its clips.

        Returns:
            The rows of these.
        """
        with self.change() as connection:
            held = []
            for path in map(os.fsencode, paths):
                delete = "DELETE FROM files WHERE path = ? RETURNING video_id"
                held += [number for (number,) in connection.execute(delete, (path,))]
            return _drop_videos_without_files(connection, held)

    def renumber(self, generation: int) -> None:
        """After compacting: the living rows, in their order, are rows 0, 1, 2 ... of a generation."""
        with self.change() as connection:
            connection.execute(
                """CREATE TEMP TABLE renumbered AS
                SELECT row_number() OVER (ORDER BY row) - 1 AS row, video_id, start_s, end_s FROM clips"""
            )
            connection.execute("DELETE FROM clips")
            connection.execute("INSERT INTO clips SELECT * FROM renumbered")
            connection.execute("DROP TABLE renumbered")
            connection.execute("DELETE FROM dead_rows")
            connection.execute(
                "UPDATE header SET generation = ?, num_rows = (SELECT count(*) FROM clips)",
                (generation,),
            )


def _video_id(connection: sqlite3.Connection, content_sha256: str, duration_s: float) -> int:
    find = "SELECT id FROM videos WHERE content_sha256 = ?"
    if found := connection.execute(find, (content_sha256,)).fetchone():
        number: int = found[0]
        return number
    insert = "INSERT INTO videos (content_sha256, duration_s) VALUES (?, ?) RETURNING id"
    (number,) = connection.execute(insert, (content_sha256, float(duration_s))).fetchone()
    return number


def _drop_videos_without_files(
    connection: sqlite3.Connection, video_ids: Iterable[int]
) -> list[int]:
    """Drop those of some videos that no file holds; the rows of their clips."""
    dropped = []
    for video_id in set(video_ids):
        in_file = "SELECT 1 FROM files WHERE video_id = ? LIMIT 1"
        if connection.execute(in_file, (video_id,)).fetchone():
            continue
        dead = "INSERT INTO dead_rows SELECT row FROM clips WHERE video_id = ? RETURNING row"
        dropped += [row for (row,) in connection.execute(dead, (video_id,))]
        for table in ("clips", "cuts", "metadata"):
            connection.execute(f"DELETE FROM {table} WHERE video_id = ?", (video_id,))
        connection.execute("DELETE FROM videos WHERE id = ?", (video_id,))
    return dropped
