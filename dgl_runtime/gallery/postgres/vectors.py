"""The vectors of a gallery in PostgreSQL: exact search, and search through pgvector's graph (HNSW).

Both ways end in the same step, that of a gallery in a folder: candidates are compared with the query once
more in float64, so a similarity depends on the two embeddings alone.
"""

from functools import partial
from typing import Any

import numpy as np
from psycopg import errors

from dgl_runtime.errors import reason_of
from dgl_runtime.gallery.filters import does_not_work
from dgl_runtime.gallery.nearest import APPROXIMATE_PAYS_FROM, breadth_for
from dgl_runtime.gallery.postgres.connection import Connections
from dgl_runtime.gallery.postgres.filters import Condition
from dgl_runtime.gallery.postgres.schema import MOST_INDEXED, Connection
from dgl_runtime.gallery.vector_store import Float32, Int64

_SLACK = 64  # more candidates than hits: what pgvector's float32 may put out of order
_BROADEST = 1_000  # that pgvector lets a search keep in view
_FILTER_MS = 10_000  # anybody may have written the condition
_ROWS_AT_ONCE = 4_096
_BUILDING = 0x64676C68  # the lock of who builds the graph
# A sum is nothing that the graph is ordered by, so all are compared.
_EXACT = "ORDER BY 0 + (clips.embedding <#> %s), clips.id LIMIT %s"
Rows = list[tuple[Any, ...]]  # of a clip each: its number and its embedding


class Vectors:
    """Those of one gallery. Threads may share them."""

    def __init__(
        self,
        connections: Connections,
        index: str,
        embed_dim: int,
        approximate_from: int | None = None,
    ) -> None:
        """Look at nothing yet.

        Args:
            connections: To the gallery.
            index: What ``schema.index_of`` calls its graph.
            embed_dim: E.
            approximate_from: Clips from which on there is a graph; None: ``APPROXIMATE_PAYS_FROM``.
        """
        self._connections, self._index, self._embed_dim = connections, index, embed_dim
        self._approximate_from = (
            APPROXIMATE_PAYS_FROM if approximate_from is None else approximate_from
        )

    def top_k(
        self, queries: Float32, top_k: int, condition: Condition | None
    ) -> tuple[Int64, Float32]:
        """Find the clips most similar to each query, in one state of the gallery.

        Args:
            queries: Unit-norm, float32 [Q, E].
            top_k: Hits per query, at least 1.
            condition: That the clips fulfil; None: all.

        Returns:
            Rows int64 [Q, k] and cosine similarities float32 [Q, k], best first, ties by row.
        """

        def search(connection: Connection) -> list[tuple[Int64, Float32]]:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                if condition is not None:
                    return _among(connection, queries, top_k, condition)
                breadth = self._breadth(connection, top_k)
                return [_nearest(connection, query, top_k, breadth) for query in queries]

        hits = self._connections.read(search)
        shape = len(queries), len(hits[0][0]) if hits else 0
        rows, similarity = np.empty(shape, np.int64), np.empty(shape, np.float32)
        for number, (found, values) in enumerate(hits):
            rows[number], similarity[number] = found, values
        return rows, similarity

    def embeddings(self, rows: Int64) -> Float32:
        """Embeddings float32 [rows, E]; zeros for a row of no clip."""
        found = np.zeros((len(rows), self._embed_dim), np.float32)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[first : first + _ROWS_AT_ONCE].tolist()
            places = {row: place for place, row in enumerate(part, first)}
            for row, embedding in self._connections.read(partial(_read, rows=part)):
                found[places[row]] = embedding.to_numpy()
        return found

    def optimize(self, num_clips: int) -> None:
        """Build the graph of a large gallery, if there is none; from then on PostgreSQL extends it.

        Others write meanwhile. A graph that a killed build left is made anew.
        """
        if num_clips < self._approximate_from or self._embed_dim > MOST_INDEXED:
            return

        def build(connection: Connection) -> None:
            query = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
            if connection.execute(query, (_BUILDING, self._index)).fetchone() != (True,):
                return  # somebody else builds it
            try:
                if not self._is_built(connection):
                    connection.execute(f"DROP INDEX IF EXISTS {self._index}")
                    connection.execute(
                        f"""CREATE INDEX CONCURRENTLY {self._index.rpartition(".")[2]} ON clips
                        USING hnsw (embedding vector_ip_ops) WITH (m = 16, ef_construction = 128)"""
                    )
            finally:
                connection.execute("SELECT pg_advisory_unlock_all()")

        self._connections.read(build)

    def _breadth(self, connection: Connection, top_k: int) -> int | None:
        """How many clips a search through the graph keeps in view; None: it compares all."""
        ((num_clips,),) = connection.execute("SELECT num_clips FROM header").fetchall()
        if num_clips < self._approximate_from or top_k > _BROADEST:
            return None
        if not self._is_built(connection):
            return None
        return min(_BROADEST, max(breadth_for(num_clips), top_k + _SLACK))

    def _is_built(self, connection: Connection) -> bool:
        query = "SELECT 1 FROM pg_index WHERE indisvalid AND indexrelid = to_regclass(%s)"
        return connection.execute(query, (self._index,)).fetchone() is not None


def _read(connection: Connection, rows: list[int]) -> Rows:
    query = "SELECT id, embedding FROM clips WHERE id = ANY(%s)"
    return connection.execute(query, (rows,), binary=True).fetchall()


def _nearest(
    connection: Connection, query: Float32, top_k: int, breadth: int | None
) -> tuple[Int64, Float32]:
    if breadth is not None:
        connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(breadth),))
        ordered = "SELECT id, embedding FROM clips ORDER BY embedding <#> %s LIMIT %s"
        wanted = min(top_k + _SLACK, breadth)
        found = connection.execute(ordered, (query, wanted), binary=True).fetchall()
        if len(found) >= top_k:  # else the graph, which has gone clips in it, leads to too few
            return _ranked(query, found, top_k)
    return _exact(connection, query, top_k, None)


def _among(
    connection: Connection, queries: Float32, top_k: int, condition: Condition
) -> list[tuple[Int64, Float32]]:
    connection.execute(f"SET LOCAL statement_timeout = {_FILTER_MS}")
    try:
        return [_exact(connection, query, top_k, condition) for query in queries]
    except errors.QueryCanceled:
        raise does_not_work(condition.where, "it takes too long", condition.known) from None
    except (errors.DataError, errors.UndefinedFunction) as error:
        raise does_not_work(condition.where, reason_of(error), condition.known) from error


def _exact(
    connection: Connection, query: Float32, top_k: int, condition: Condition | None
) -> tuple[Int64, Float32]:
    among, values = ("", ()) if condition is None else (condition.among, condition.values)
    text = f"SELECT clips.id, clips.embedding FROM clips {among} {_EXACT}"
    found = connection.execute(text, (*values, query, top_k + _SLACK), binary=True).fetchall()
    return _ranked(query, found, top_k)


def _ranked(query: Float32, found: Rows, top_k: int) -> tuple[Int64, Float32]:
    rows = np.array([row for row, _ in found], np.int64)
    embeddings = np.array([embedding.to_numpy() for _, embedding in found], np.float32)
    products = np.multiply(embeddings.reshape(len(found), len(query)), query, dtype=np.float64)
    similarity = products.sum(axis=1).astype(np.float32)
    order = np.lexsort((rows, -similarity))[:top_k]
    return rows[order], similarity[order]
