"""A gallery in PostgreSQL: the verbs of ``gallery/contract.py``, on records and vectors."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.clips import Clip, FileState, Found, Header, Known, Value, Video
from dgl_runtime.gallery.facts import Facts
from dgl_runtime.gallery.metadata import MetadataReport, match_videos, parse_metadata
from dgl_runtime.gallery.postgres import schema
from dgl_runtime.gallery.postgres.address import PostgresAddress
from dgl_runtime.gallery.postgres.connection import PATIENCE_S, Connections
from dgl_runtime.gallery.postgres.filters import Condition, read_condition
from dgl_runtime.gallery.postgres.records import Records
from dgl_runtime.gallery.postgres.vectors import Vectors
from dgl_runtime.gallery.vector_store import Float32, Int64, require_matrix


class PostgresGallery:
    """Clip embeddings of one bundle; see ``GalleryVerbs``. Use :meth:`create` or :meth:`open`.

    Readers see what was committed last. Any number of processes may write at once.
    """

    is_local = False

    def __init__(
        self,
        address: PostgresAddress,
        connections: Connections,
        *,
        is_writable: bool,
        approximate_from: int | None = None,
    ) -> None:
        self.address = str(address)
        self._connections, self._is_writable = connections, is_writable
        self._records = Records(connections, self.address)
        self._header, _ = self._records.state()  # what does not change
        self._vectors = Vectors(
            connections,
            schema.index_of(address.gallery),
            self._header.embed_dim,
            approximate_from,
        )

    @classmethod
    def create(
        cls,
        address: PostgresAddress,
        *,
        bundle_id: str,
        bundle_path: str | Path,
        embed_dim: int,
        num_frames: int,
    ) -> Self:
        """Make an empty gallery and open it for writing; if somebody has just made it, open that.

        Args:
            address: Where.
            bundle_id: Names the bundle whose embeddings it will hold.
            bundle_path: Where that bundle lies, to find it again.
            embed_dim: E, the width of an embedding.
            num_frames: F, the number of frame weights of a clip.

        Raises:
            GalleryError: It cannot be made, or there is one of another bundle.
            GalleryAwayError: The server cannot be reached.
        """
        header = Header(bundle_id, str(bundle_path), embed_dim, num_frames, 0)

        def make(connection: schema.Connection) -> None:
            with connection.transaction():
                schema.create(connection, address.gallery, header)

        with contextlib.closing(Connections(address)) as connections:
            connections.read(make)  # whose server is not waited for
        return cls.open(address, bundle_id=bundle_id, writable=True)

    @classmethod
    def open(
        cls,
        address: PostgresAddress,
        *,
        bundle_id: str | None = None,
        writable: bool = False,
        approximate_from: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Self:
        """Open a gallery.

        Args:
            address: Where it lies.
            bundle_id: The bundle to search or ingest with; None accepts any.
            writable: Whether changes are taken.
            approximate_from: Clips from which on searches go through a graph; None: 100,000.
            patience_s: How long a writer waits for a server that went away.

        Raises:
            GalleryError: Missing, of another bundle or version.
            GalleryAwayError: The server cannot be reached.
        """
        with contextlib.ExitStack() as held:
            connections = Connections(address)
            held.callback(connections.close)
            if not connections.read(lambda one: schema.is_there(one, address.gallery)):
                raise GalleryError(
                    f"{address} is not a gallery: the database has none of that name. Name one that "
                    "dgl-index wrote."
                )
            gallery = cls(
                address, connections, is_writable=writable, approximate_from=approximate_from
            )
            found = gallery._header.bundle_id
            if bundle_id is not None and bundle_id != found:
                raise GalleryError(
                    f"gallery {address} holds embeddings of bundle {found}, not of {bundle_id}. Use that "
                    "bundle, or index into a gallery of another name."
                )
            if writable:
                connections.patience_s = patience_s
            held.pop_all()
        return gallery

    @staticmethod
    def is_at(address: PostgresAddress) -> bool:
        """Whether the database holds such a gallery.

        Raises:
            GalleryAwayError: The server cannot be reached.
        """
        with contextlib.closing(Connections(address)) as connections:
            return connections.read(lambda one: schema.is_there(one, address.gallery))

    def close(self) -> None:
        """Let go of the connections. Closing twice does no harm."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what it is and knows -----------------------------------------------------------------

    def __len__(self) -> int:
        """Return N, the number of clips."""
        return self.facts.num_clips

    @property
    def facts(self) -> Facts:
        """What it is of and how much it holds now."""
        header, num_clips = self._records.state()
        return Facts.of(header, num_clips, self._records)

    def is_newest(self) -> bool:
        """That it shows what was committed last: True, if the server is there."""
        self._records.count_videos()
        return True

    def plan(self, files: Iterable[FileState], segmentation: str) -> list[Known]:
        """See ``GalleryVerbs``."""
        return self._records.known(list(files), segmentation)

    def missing(self, clips: Sequence[Clip]) -> list[int]:
        """See ``GalleryVerbs``."""
        return self._records.missing(clips)

    def files(self, video: int | str | None = None) -> list[FileState]:
        """See ``GalleryVerbs``."""
        return self._records.files(video)

    def videos(self, after: int, count: int) -> list[Video]:
        """See ``GalleryVerbs``."""
        return self._records.videos(after, count)

    def look_up(self, rows: Iterable[int]) -> dict[int, Found]:
        """What is known of some rows, those left out that are of no clip (any more)."""
        return self._records.look_up(map(int, rows))

    def embeddings(self, rows: slice | Int64 = slice(None)) -> Float32:
        """Unit-norm embeddings of rows, float32 [rows, E]; zeros for a row of no clip."""
        if isinstance(rows, slice):
            rows = np.arange(self.facts.num_rows)[rows]
        return self._vectors.embeddings(rows)

    # ---- searching ----------------------------------------------------------------------------

    def search(
        self, queries: Float32, top_k: int, where: str | Condition | None = None
    ) -> tuple[Int64, Float32]:
        """See ``GalleryVerbs``; with a condition, and in a gallery without a graph, it misses none."""
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1.")
        require_matrix("queries", queries, ("Q", self._header.embed_dim), is_unit=True)
        condition = self.select(where) if isinstance(where, str) else where
        return self._vectors.top_k(queries, top_k, condition)

    def select(self, where: str) -> Condition:
        """Read a condition in SQL, for several searches; see ``filters.py`` here."""
        return read_condition(where, self._records.columns())

    def warm(self) -> None:
        """Connect."""
        self._records.count_videos()

    # ---- writing ------------------------------------------------------------------------------

    def upsert(self, file: FileState, content_sha256: str, duration_s: float) -> None:
        """See ``GalleryVerbs``."""
        self._require_writable()
        self._records.upsert(file, content_sha256, duration_s)

    def ingest(self, clips: Sequence[Clip], embeddings: Float32, frame_weights: Float32) -> None:
        """See ``GalleryVerbs``; a clip that is there stays as it is."""
        self._require_writable()
        shape = len(clips), self._header.embed_dim
        require_matrix("embeddings", embeddings, shape, is_unit=True)
        require_matrix("frame_weights", frame_weights, (len(clips), self._header.num_frames))
        if clips:
            self._records.append(clips, embeddings, frame_weights)

    def finish(self, content_sha256: str, segmentation: str) -> None:
        """See ``GalleryVerbs``."""
        self._require_writable()
        self._records.finish(content_sha256, segmentation)

    def remove(self, paths: Iterable[str]) -> None:
        """See ``GalleryVerbs``."""
        self._require_writable()
        self._records.remove(paths)

    def upsert_metadata(self, path: Path, tell: Callable[[str], None]) -> MetadataReport:
        """See ``GalleryVerbs``."""
        self._require_writable()
        metadata = parse_metadata(path, tell)
        found, unmatched = match_videos(metadata, self._records.by_file(), tell)
        columns = {
            name: not any(isinstance(values[place], str) for _, _, values in metadata.rows)
            for place, name in enumerate(metadata.columns)
        }
        self._records.write_metadata(columns, found, path)
        return MetadataReport(len(found), unmatched)

    def write_metadata(self, columns: Sequence[str], values: Mapping[str, Sequence[Value]]) -> None:
        """See ``GalleryVerbs``."""
        self._require_writable()
        numbers = self._records.numbers_of(values)
        kinds = {
            name: not any(isinstance(row[place], str) for row in values.values())
            for place, name in enumerate(columns)
        }
        found = {numbers[one]: row for one, row in values.items() if one in numbers}
        self._records.write_metadata(kinds, found, "them")

    def compact(self) -> None:
        """Build the graph of a large gallery; room is reclaimed by PostgreSQL's own vacuum."""
        self._require_writable()
        self._vectors.optimize(len(self))

    def _require_writable(self) -> None:
        if not self._is_writable:
            raise GalleryError(
                f"gallery {self.address} is not open for writing. Open it with writable=True."
            )
