"""Pictures as they are shown: a video may say that its frames are to be turned or mirrored.

A picture says the same in its Exif, which Pillow reads (``stills.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray


def as_shown(frame: VideoFrame, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn and mirror the pixels of a frame as its display matrix says.

    The matrix takes a point (x, y) to (a x + c y, b x + d y); of an angle between right ones, the
    nearest right one is taken.

    Args:
        frame: As it was decoded.
        pixels: Its pixels as they lie, uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3], or [W, H, 3] where the picture is turned on its side.
    """
    from av.sidedata.sidedata import SideDataContainer, Type

    try:
        # Not frame.side_data: a frame that keeps it refers to itself, and stays in memory for long.
        matrix = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    except ValueError:  # PyAV has no name for something else beside it; this angle knows no mirror
        return np.rot90(pixels, round(frame.rotation / 90))
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if is_on_its_side := abs(b) > abs(a):
        pixels = pixels.transpose(1, 0, 2)
    across, down = (c, b) if is_on_its_side else (a, d)
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
