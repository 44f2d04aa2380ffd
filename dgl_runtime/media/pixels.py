"""Preprocessing: resize and crop a picture as a FrameSpec says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image, Resampling

    from dgl_runtime.media.frame_spec import FrameSpec


def preprocess(picture: Image | NDArray[np.uint8], spec: FrameSpec) -> NDArray[np.uint8]:
    """Bring a picture to the model's size, exactly as its training did.

    Pillow resizes, with antialias; sizes and offsets are rounded as in torchvision's Resize and
    CenterCrop (``shortest``), and as in open_clip where black is added (``longest``).

    Args:
        picture: A Pillow image of any mode, or uint8 [H, W, 3] RGB.
        spec: Size S, resize and interpolation.

    Returns:
        uint8 [3, S, S] RGB.
    """
    from PIL import Image

    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image = image if image.mode == "RGB" else image.convert("RGB")
    filter_ = Image.Resampling[spec.interpolation.upper()]
    match spec.resize:
        case "squash":
            image = image.resize((spec.size, spec.size), filter_)
        case "longest":
            image = _with_black(image, spec.size, filter_)
        case _:
            image = _cut_out(image, spec.size, filter_)
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def _cut_out(image: Image, size: int, filter_: Resampling) -> Image:
    """The shorter side becomes ``size`` and the centre is cut out."""
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    # Pillow resizes across, then down. In two calls, what is cut off is not resized down.
    image = image.resize((width, image.height), filter_)
    image = image.crop((left, 0, left + size, image.height))
    image = image.resize((size, height), filter_)
    return image.crop((0, top, size, top + size))


def _with_black(image: Image, size: int, filter_: Resampling) -> Image:
    """The longer side becomes ``size``; black stands around the other."""
    ratio = max(image.size) / size
    width, height = (max(1, round(side / ratio)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    # What lies outside of a picture is black.
    return image.resize((width, height), filter_).crop((-left, -top, size - left, size - top))
