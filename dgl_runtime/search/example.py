"""An example to search by: a picture, a video, or a moment of one, as an embedding."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.decoding.decode_pool import Clips, DecodePool, Done, Job
from dgl_runtime.decoding.decode_process import Limits
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import MediaError
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.names import find_path, form_hint, similar_path


def read_example(
    encoder: Encoder, path: Path, segmentation: Segmentation, limits: Limits | None = None
) -> NDArray[np.float32]:
    """Decode in a process of its own and embed: unit-norm float32 [1, E].

    Raises:
        MediaError: It cannot be read within the limits.
    """
    path = find_path(path)
    if hint := form_hint(None if os.path.lexists(path) else similar_path(path)):
        raise MediaError(f"{path} does not exist{hint}. Check the path.")
    with DecodePool(segmentation, encoder.input_spec.frames, jobs=1, limits=limits) as pool:
        # The content's hash names clips of a gallery; here nobody asks for it.
        for found in pool.read([Job(path, content="example")], lambda seen: [0]):
            if isinstance(found, Clips):
                return encoder.embed_clips(found.frames).embeddings
            if isinstance(found, Done):
                raise MediaError(found.fault or f"{path} shows nothing.")
    raise AssertionError
