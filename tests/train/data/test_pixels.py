"""Our pixels against those of open_clip's own transforms."""

from itertools import product

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from dgl_runtime.media.frame_spec import INTERPOLATIONS, RESIZES
from dgl_runtime.media.pixels import preprocess
from tests.helpers.specs import frame_spec


@pytest.mark.parametrize(("resize", "interpolation"), [*product(RESIZES, INTERPOLATIONS)])
def test_pixels_are_those_of_open_clip(resize, interpolation):
    rng = np.random.default_rng(0)
    transform = image_transform(
        24,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode=resize,
        interpolation=interpolation,
    )
    for height, width in ((40, 23), (23, 40), (7, 11), (24, 24), (301, 95)):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = np.asarray(transform(Image.fromarray(picture))) * 255
        pixels = preprocess(picture, frame_spec(1, 24, resize=resize, interpolation=interpolation))
        # Pillow may resize a tall picture down before across, which rounds in another order.
        off = np.abs(pixels - expected.round()).max()
        assert off <= (resize == "shortest" and height > 3 * width)
