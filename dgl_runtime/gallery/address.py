"""Where a gallery lies, a folder or an address of PostgreSQL, and how it is opened there.

Libraries of an engine are imported when a gallery of it is opened.
"""

from pathlib import Path

from dgl_runtime.gallery.contract import AnyGallery
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.gallery.postgres.address import PostgresAddress

Place = Path | PostgresAddress


def read_place(text: "str | Path | PostgresAddress") -> Place:
    """What a user names: a folder, or postgresql://USER@HOST:PORT/DATABASE?gallery=NAME.

    Raises:
        GalleryError: It begins like such an address and is none.
    """
    if isinstance(text, str) and PostgresAddress.is_one(text):
        return PostgresAddress.parse(text)
    return text if isinstance(text, PostgresAddress) else Path(text)


def name_of(place: Place) -> str:
    """What people call the gallery: the name of its folder, or its name in the database."""
    return place.resolve().name if isinstance(place, Path) else place.gallery


def is_gallery_at(place: Place) -> bool:
    """Whether there is a gallery; one whose creation was killed is none.

    Raises:
        GalleryAwayError: The engine cannot be reached.
    """
    if isinstance(place, Path):
        return Gallery.is_at(place)
    from dgl_runtime.gallery.postgres.gallery import PostgresGallery

    return PostgresGallery.is_at(place)


def open_gallery(
    place: Place, *, bundle_id: str | None = None, writable: bool = False
) -> AnyGallery:
    """Open a gallery.

    Args:
        place: Where it lies.
        bundle_id: The bundle to search or ingest with; None accepts any.
        writable: Whether changes are taken; of a folder there is one writer.

    Raises:
        GalleryError: Missing, damaged, of another bundle or version, or written by another.
        GalleryAwayError: The engine cannot be reached.
    """
    if isinstance(place, Path):
        return Gallery.open(place, bundle_id=bundle_id, writable=writable)
    from dgl_runtime.gallery.postgres.gallery import PostgresGallery

    return PostgresGallery.open(place, bundle_id=bundle_id, writable=writable)


def open_or_create(
    place: Place, *, bundle_id: str, bundle_path: str | Path, embed_dim: int, num_frames: int
) -> AnyGallery:
    """Open a gallery for writing, made first if it is new.

    Args:
        place: Where it lies, or is to lie.
        bundle_id: Names the bundle whose embeddings it holds.
        bundle_path: Where that bundle lies, to find it again.
        embed_dim: E, the width of an embedding.
        num_frames: F, the number of frame weights of a clip.

    Raises:
        GalleryError: It cannot be made or written, or is of another bundle.
        GalleryAwayError: The engine cannot be reached.
    """
    if is_gallery_at(place):  # else new, or left behind by a run killed in its first moment
        return open_gallery(place, bundle_id=bundle_id, writable=True)
    if isinstance(place, Path):
        return Gallery.create(
            place,
            bundle_id=bundle_id,
            bundle_path=bundle_path,
            embed_dim=embed_dim,
            num_frames=num_frames,
        )
    from dgl_runtime.gallery.postgres.gallery import PostgresGallery

    return PostgresGallery.create(
        place,
        bundle_id=bundle_id,
        bundle_path=bundle_path,
        embed_dim=embed_dim,
        num_frames=num_frames,
    )
