"""A frame that several clips show is encoded once, where a clip is the mean of its frames."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
KEPT_FRAMES = 1024  # whose embeddings are kept: a few MB, and more than any overlap of windows


class SharedFrames:
    """Embeddings of the frames encoded last, by their pixels. Threads may share it.

    Args:
        encode: Clips of one frame, uint8 [N, 1, 3, S, S] -> unit-norm embeddings float32 [N, E].
    """

    def __init__(self, encode: Callable[[NDArray[np.uint8]], Float32]) -> None:
        self._encode, self._lock = encode, Lock()
        self._known: OrderedDict[bytes, Float32] = OrderedDict()

    def embed_clips(self, frames: NDArray[np.uint8]) -> Float32:
        """Clips uint8 [B, F, 3, S, S] -> what the clip encoder makes of them, to rounding: [B, E]."""
        count, length = frames.shape[:2]
        pictures = frames.reshape(count * length, 1, *frames.shape[2:])
        keys = [blake2b(one.tobytes(), digest_size=16).digest() for one in pictures]
        by_key = self._recalled(keys)
        new = {key: row for row, key in enumerate(keys) if key not in by_key}
        if new:
            by_key |= zip(new, self._encode(pictures[[*new.values()]]), strict=True)
            self._keep(by_key)
        mean: Float32 = (
            np.stack([by_key[key] for key in keys]).reshape(count, length, -1).mean(axis=1)
        )
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return mean

    def _recalled(self, keys: list[bytes]) -> dict[bytes, Float32]:
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)
            return found

    def _keep(self, embedded: dict[bytes, Float32]) -> None:
        with self._lock:
            self._known.update(embedded)
            while len(self._known) > KEPT_FRAMES:
                self._known.popitem(last=False)
