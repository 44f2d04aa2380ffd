"""The galleries that are served: each as the snapshot that was taken last, while a writer may go on.

One in an engine always shows its newest state, so its first snapshot stays.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.address import Place, name_of, open_gallery
from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.gallery.shared import Shared
from dgl_runtime.search.find import Hubness, bank_hubness

REFRESH_S = 2.0


@dataclass(frozen=True)
class Snapshot:
    """A gallery as it was at one moment."""

    gallery: AnyGallery
    bank_hubness: Hubness | None

    def close(self) -> None:
        """Let it go."""
        self.gallery.close()


class ServedGallery:
    """One gallery under its name."""

    def __init__(self, name: str, place: Place, encoder: Encoder, bank: Sequence[str] = ()) -> None:
        """Name it; it is opened by :meth:`refresh`.

        Args:
            name: What addresses call it.
            place: Where it lies.
            encoder: Of its bundle, perhaps shared with other galleries.
            bank: Texts of the querybank.
        """
        self.name, self.place, self.encoder, self.bank = name, place, encoder, bank
        self._snapshots = Shared(self._refuse)

    def refresh(self) -> bool:
        """Take a new snapshot if the gallery has changed; those who look at the old one finish with it.

        Returns:
            Whether it had.

        Raises:
            GalleryError: It is damaged, or of another bundle now.
            GalleryAwayError: Its engine cannot be reached.
        """
        if (now := self._snapshots.newest) is not None:
            if now.gallery.is_newest():
                return False
        gallery = open_gallery(self.place, bundle_id=self.encoder.bundle.id)
        try:
            gallery.warm()
            bank = self.encoder.embed_texts(self.bank) if self.bank else None
            hubness = None if bank is None else bank_hubness(gallery, bank)
        except BaseException:
            gallery.close()
            raise
        self._snapshots.put(Snapshot(gallery, hubness))
        return True

    def look(self) -> AbstractContextManager[Snapshot]:
        """The newest snapshot, for as long as the context lasts."""
        return self._snapshots.look()

    def _refuse(self) -> Snapshot:
        raise GalleryError(f"gallery {self.name} is closed.")

    def close(self) -> None:
        """Let it go."""
        self._snapshots.close()


def names_of(places: Sequence[Place]) -> list[str]:
    """A name for each gallery, from its folder or address; equal ones are numbered."""
    names: list[str] = []
    for place in places:
        base = "".join(c if c.isalnum() or c in "-_" else "-" for c in name_of(place)) or "gallery"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
