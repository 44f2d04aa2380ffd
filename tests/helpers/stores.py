"""Vector stores under one contract: the local one, by rows or by graph, and one in another process."""

import threading
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import BaseManager

import numpy as np

from dgl_runtime.gallery.local_vector_store import LocalVectors

KINDS = ("rows", "graph", "memory")
_KEY = b"tests"


class Shelf:
    """Vectors by the folder of their gallery and their key; it outlives those who write them."""

    def __init__(self):
        self._vectors, self._lock = {}, threading.Lock()

    def write(self, name, keys, embeddings, frame_weights):
        rows = zip(embeddings, frame_weights, strict=True)
        with self._lock:
            self._vectors.setdefault(name, {}).update(zip(keys, rows, strict=True))

    def keep(self, name, keys):
        """Drop all keys but these."""
        with self._lock:
            there = self._vectors.get(name, {})
            self._vectors[name] = {key: there[key] for key in keys if key in there}

    def keys(self, name):
        return sorted(self._vectors.get(name, {}))

    def read(self, name, keys):
        return [self._vectors[name][key] for key in keys]


_SHELF = Shelf()


def _shelf():
    return _SHELF


class Server(BaseManager):
    """The process that has the shelf."""


Server.register("shelf", callable=_shelf)


def serve():
    """Start the process; the caller shuts it down."""
    server = Server(authkey=_KEY, ctx=get_context("spawn"))
    server.start()
    return server


class MemoryStore:
    """A ``VectorStore`` whose keys never change: what is dropped is dropped at once, and in place."""

    def __init__(self, folder, address):
        server = Server(address=address, authkey=_KEY)
        server.connect()
        self.shelf, self.name = server.shelf(), str(folder)

    def sync(self, header, *, clean=False):
        self._header = header
        if clean:
            keys = self.shelf.keys(self.name)
            self.shelf.keep(self.name, [key for key in keys if key < header.num_rows])

    def upsert(self, keys, embeddings, frame_weights):
        self.shelf.write(self.name, keys.tolist(), embeddings, frame_weights)

    def remove(self, keys):
        there = self.shelf.keys(self.name)
        self.shelf.keep(self.name, sorted(set(there) - set(keys.tolist())))

    def compact(self, living):
        self.shelf.keep(self.name, np.flatnonzero(living).tolist())
        return self._header.generation

    def optimize(self):
        """Nothing: every vector is looked at."""

    def warm(self):
        """Nothing."""

    def close(self):
        """Nothing: the shelf belongs to its process."""

    def top_k(self, queries, top_k, among):
        keys = np.array(
            [key for key in self.shelf.keys(self.name) if key < len(among) and among[key]], np.int64
        )
        embeddings = self.embeddings(keys)
        similarity = np.multiply(queries[:, None], embeddings[None], dtype=np.float64).sum(2)
        similarity = similarity.astype(np.float32)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
        return keys[order], np.take_along_axis(similarity, order, 1)

    def embeddings(self, keys):
        return self._read(keys, 0, self._header.embed_dim)

    def frame_weights(self, keys):
        return self._read(keys, 1, self._header.num_frames)

    def _read(self, keys, part, width):
        if isinstance(keys, slice):
            keys = np.arange(self._header.num_rows)[keys]
        rows = [row[part] for row in self.shelf.read(self.name, keys.tolist())]
        return np.array(rows, np.float32).reshape(len(keys), width)


def store_of(kind, address=None):
    """Makes a gallery's store of one of ``KINDS``; ``address``: of the process that has the shelf."""
    if kind == "memory":
        return partial(MemoryStore, address=address)
    return partial(LocalVectors, approximate_from=0 if kind == "graph" else None, threads=1)
