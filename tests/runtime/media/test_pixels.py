"""Pictures as pixels: each resize and interpolation, against Pillow and numbers of torchvision."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from dgl_runtime.media.frame_spec import INTERPOLATIONS, RESIZES
from dgl_runtime.media.pixels import preprocess
from tests.helpers.specs import frame_spec

SIZE = 32


def reference_preprocess(picture: np.ndarray, size: int) -> np.ndarray:
    """torchvision's Resize(size, BICUBIC) and CenterCrop(size) on a Pillow image, spelt out."""
    height, width = picture.shape[:2]
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    image = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top = int(round((new_height - size) / 2.0))  # noqa: RUF046
    left = int(round((new_width - size) / 2.0))  # noqa: RUF046
    return np.asarray(image)[top : top + size, left : left + size].transpose(2, 0, 1)


@pytest.mark.parametrize(
    "shape", [(48, 64), (64, 48), (33, 47), (32, 32), (32, 75), (9, 13), (1, 1)]
)
def test_preprocess_is_resize_and_centre_crop(shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = preprocess(picture, frame_spec(1, SIZE))
    np.testing.assert_array_equal(pixels, reference_preprocess(picture, SIZE))
    np.testing.assert_array_equal(pixels, preprocess(Image.fromarray(picture), frame_spec(1, SIZE)))
    assert pixels.flags.c_contiguous


def test_preprocess_gives_the_pixels_of_torchvision():
    # Made with torchvision 0.29 and Pillow 13: Resize(4, BICUBIC), CenterCrop(4).
    y, x, channel = np.mgrid[:7, :11, :3]
    picture = ((x * 37 + y * y * 11 + channel * 71) % 256).astype(np.uint8)
    expected = [
        [[83, 163, 177, 30], [140, 195, 83, 82], [161, 116, 123, 164], [168, 122, 142, 118]],
        [[167, 159, 26, 106], [187, 71, 83, 164], [113, 122, 166, 142], [117, 137, 120, 167]],
        [[191, 61, 103, 192], [58, 85, 170, 164], [121, 167, 133, 114], [131, 123, 159, 121]],
    ]
    np.testing.assert_array_equal(
        preprocess(picture, frame_spec(1, 4)), np.array(expected, np.uint8)
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_a_picture_of_any_mode_is_read_as_its_colours(mode):
    picture = Image.fromarray(random_picture(40, 23)).convert(mode)
    pixels = preprocess(picture, frame_spec(1, SIZE))
    np.testing.assert_array_equal(pixels, preprocess(picture.convert("RGB"), frame_spec(1, SIZE)))


def random_picture(*shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_squash_makes_both_sides_the_size(interpolation):
    picture = random_picture(40, 23)
    filter_ = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), filter_))
    spec = frame_spec(1, SIZE, resize="squash", interpolation=interpolation)
    np.testing.assert_array_equal(preprocess(picture, spec), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("shape", "inside"), [((64, 32), (32, 16)), ((11, 64), (6, 32))])
def test_longest_shows_the_whole_picture_between_black(shape, inside):
    picture = np.maximum(random_picture(*shape), 1)
    tall, wide = inside
    pixels = preprocess(picture, frame_spec(1, SIZE, resize="longest"))
    assert pixels.shape == (3, SIZE, SIZE)
    whole = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (SIZE - tall) // 2, (SIZE - wide) // 2
    inner = pixels[:, top : top + tall, left : left + wide]
    np.testing.assert_array_equal(inner, whole.transpose(2, 0, 1))
    assert pixels.astype(int).sum() == inner.astype(int).sum()


def test_a_picture_a_thousand_times_as_wide_as_high_is_one_row():
    pixels = preprocess(np.full((1, 1000, 3), 200, np.uint8), frame_spec(1, 8, resize="longest"))
    assert pixels.shape == (3, 8, 8)
    assert (pixels[:, 3] == 200).all()
    assert pixels.astype(int).sum() == 200 * 3 * 8


def test_every_way_gives_other_pixels():
    picture = random_picture(40, 23)
    ways = [
        frame_spec(1, SIZE, resize=resize, interpolation=interpolation)
        for resize, interpolation in product(RESIZES, INTERPOLATIONS)
    ]
    assert len({preprocess(picture, way).tobytes() for way in ways}) == len(ways) == 6
