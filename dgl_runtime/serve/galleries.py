"""The galleries that are served: each as the snapshot that was taken last, while a writer may go on."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.gallery import APPROXIMATE_PAYS_FROM, Gallery
from dgl_runtime.retriever import Retriever
from dgl_runtime.search.find import bank_hubness

REFRESH_S = 2.0


@dataclass
class Snapshot:
    """A gallery as it was at one moment, and how many requests look at it."""

    gallery: Gallery
    bank_hubness: NDArray[np.float32] | None
    users: int = 0
    is_old: bool = False


@dataclass
class ServedGallery:
    """One gallery under its name."""

    name: str
    folder: Path
    retriever: Retriever  # of its bundle, perhaps shared with other galleries
    bank: Sequence[str] = ()  # texts of the querybank
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _snapshot: Snapshot | None = None

    def refresh(self) -> bool:
        """Take a new snapshot if the gallery has changed; those who look at the old one finish with it.

        Returns:
            Whether it had.

        Raises:
            GalleryError: It is damaged, or of another bundle now.
        """
        if (now := self._snapshot) is not None:
            if now.gallery.records.newest_version() == now.gallery.version:
                return False
        gallery = Gallery.open(self.folder, bundle_id=self.retriever.bundle.id)
        if len(gallery) >= APPROXIMATE_PAYS_FROM:
            gallery.open_approximate_index()
        bank = self.retriever.embed_texts(self.bank) if self.bank else None
        fresh = Snapshot(gallery, None if bank is None else bank_hubness(gallery, bank))
        with self._lock:
            old, self._snapshot = self._snapshot, fresh
            if old is not None:
                old.is_old = True
                if not old.users:
                    old.gallery.close()
        return True

    @contextmanager
    def look(self) -> Iterator[Snapshot]:
        """The newest snapshot, for as long as the context lasts."""
        with self._lock:
            snapshot = self._snapshot
            if snapshot is None:
                raise GalleryError(f"gallery {self.name} is closed.")
            snapshot.users += 1
        try:
            yield snapshot
        finally:
            with self._lock:
                snapshot.users -= 1
                if snapshot.is_old and not snapshot.users:
                    snapshot.gallery.close()

    def close(self) -> None:
        """Let it go."""
        with self._lock:
            if self._snapshot is not None:
                self._snapshot.gallery.close()
                self._snapshot = None


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each gallery, from its folder; equal ones are numbered."""
    names: list[str] = []
    for folder in folders:
        base = (
            "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.resolve().name)
            or "gallery"
        )
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
