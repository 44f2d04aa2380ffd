"""Videos of scenes: still pictures, each unlike the one before."""

import numpy as np

from tests.helpers.odd_videos import write_video

SIZE = (64, 48)


def scene(number, size=SIZE):
    """A still picture of blocks, unlike that of another number."""
    width, height = size
    blocks = np.random.default_rng(number).integers(0, 255, (3, 4, 3), np.uint8)
    return np.kron(blocks, np.ones((height // 3, width // 4, 1), np.uint8))


def write_scenes(path, lengths, first=0, **options):
    """A video of scenes, each of some frames, 10 a second if ``pts`` does not say otherwise."""
    size = options.get("size", SIZE)
    pictures = [scene(i, size) for i, length in enumerate(lengths, first) for _ in range(length)]
    return write_video(path, len(pictures), pictures=pictures, **options)
