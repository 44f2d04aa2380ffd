"""Pictures that do not move, read by Pillow; their content tells what they are, not their name.

FFmpeg takes one tile, or what says how transparent a picture is, for the whole of a HEIC or AVIF.
"""

from __future__ import annotations

import mmap
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from dgl_runtime.errors import MediaError
from dgl_runtime.media.boxes import boxes
from dgl_runtime.media.container import one_line, open_container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MOST_PIXELS = 2**28
"""Of a picture, in the processes that decode: FFmpeg's bound for a frame."""

_FORMATS = tuple("AVIF BMP GIF JPEG JPEG2000 PNG PPM TIFF WEBP".split())
_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|\0{3}\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
"""How a picture begins, and nothing else: what Pillow cannot open of these is damaged."""

_SHORT_BEGINNING = re.compile(rb"BM|P[1-7Ffy]\s")
"""How a picture may begin."""

_ANOTHER = {"JPEG": b"\xff\xd9\xff\xd8\xff", "PNG": b"IEND\xaeB\x60\x82\x89PNG\r\n\x1a\n"}
"""Where a picture ends and another begins: a video of pictures, one behind another."""

_STILL_BRANDS = frozenset(b"avif heic heim heis heix j2ki jpeg mif1 mif2 miaf".split())
_MOVING_BRANDS = frozenset(b"avis hevc hevm hevs hevx msf1".split())


@dataclass(frozen=True)
class Still:
    """A picture that does not move; ``remark`` says what else the file holds, in words."""

    remark: str | None


def find_still(path: Path) -> Still | None:
    """What a file holds if that is a picture; None: it may be a video, as a picture that moves is.

    Raises:
        MediaError: It is a picture and cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(16)
        brands = _brands(file)
        is_heif = _is_still_by_brand(file, brands)
    if is_heif and b"avif" not in brands and find_spec("pillow_heif") is None:
        _require_one_stream(path)
        return None
    is_short = _SHORT_BEGINNING.match(head) is not None
    if not (is_heif or is_short or _BEGINNING.match(head)):
        return None
    from PIL import UnidentifiedImageError

    try:
        with _opened(path) as image:
            return _look(path, image)
    except MediaError as fault:
        if is_short and isinstance(fault.__cause__, UnidentifiedImageError):
            return None  # two letters are no proof
        raise


def read_still(path: Path) -> NDArray[np.uint8]:
    """The picture as it is shown, uint8 [H, W, 3] RGB; what is transparent is white.

    Raises:
        MediaError: It cannot be read.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        image.load()
        return np.asarray(_in_rgb(ImageOps.exif_transpose(image)), np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """Open a picture; whatever goes wrong with it, here or in the caller, becomes a MediaError."""
    from PIL import Image

    formats = list(_FORMATS)
    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats.append("HEIF")
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except (MediaError, MemoryError):
        raise
    except Exception as fault:  # Pillow's plugins raise whatever their format's library does
        raise MediaError(
            f"{path} is a picture that cannot be read ({one_line(fault)}). "
            "Open it to check, and copy it again or save it as PNG."
        ) from fault


def _look(path: Path, image: ImageFile) -> Still | None:
    if image.format in ("GIF", "PNG") and getattr(image, "is_animated", False):
        return None
    if "mp" not in image.info and _is_followed_by_another(path, image):
        return None
    count = getattr(image, "n_frames", 1)
    if image.format == "MPO" or count == 1:  # the others belong to the first, as its depth does
        return Still(None)
    return Still(f"holds {count} pictures; the first is taken")


def _is_followed_by_another(path: Path, image: ImageFile) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if image.format == "PPM":
            pixels = image.width * image.height * len(image.getbands())
            end = image.tile[0].offset + pixels
            return content[end : end + 2] == content[:2]
        return image.format in _ANOTHER and content.find(_ANOTHER[image.format]) >= 0


def _brands(file: BinaryIO) -> list[bytes]:
    """The brands of a file of the mp4 family, the major one first; of another, none."""
    first = next(boxes(file), None)
    if first is None or first.kind != b"ftyp":
        return []
    file.seek(first.start)
    content = file.read(min(first.end - first.start, 1024))
    brands = [content[place : place + 4] for place in range(0, len(content), 4)]
    return brands[:1] + brands[2:]  # between them stands a version


def _is_still_by_brand(file: BinaryIO, brands: list[bytes]) -> bool:
    if not brands or brands[0] in _MOVING_BRANDS:
        return False
    if brands[0] in _STILL_BRANDS:
        return True
    has_tracks = any(box.kind == b"moov" for box in boxes(file))
    return not has_tracks and not _STILL_BRANDS.isdisjoint(brands)


def _require_one_stream(path: Path) -> None:
    """Without its plugin, a HEIC is left to FFmpeg if it holds one picture in one piece."""
    with open_container(path) as container:
        if len(container.streams) == 1:
            return
    raise MediaError(
        f"{path} is a HEIC picture in several pieces, which needs the package 'pillow_heif'. "
        "Install it with: pip install 'dgl-retrieval[heic]'"
    )


def _in_rgb(image: Image) -> Image:
    from PIL import Image as Images

    if image.mode[0] in "IF":  # Pillow would cut off at 255 what has 16 bits or more, or is a float
        grey = np.nan_to_num(np.array(image, np.float32))
        grey *= 255 / max(1.0 if image.mode == "F" else 65535.0, float(grey.max()))
        return Images.fromarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    shown = Images.new("RGB", image.size, "white")
    shown.paste(coloured, mask=coloured.getchannel("A"))
    return shown
