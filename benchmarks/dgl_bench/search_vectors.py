"""Made embeddings that are spread as CLIP's are, so that a search is as hard as on real ones.

What makes CLIP's hard: all clips lie in one cone and all texts in another (the modality gap), so a
query is far from every clip, and little of it says which clip; the clips of a video lie close together;
topics are clusters; the directions that tell clips apart are about forty, not as many as the numbers of
an embedding. The cosines are those of ViT-B/32: two clips 0.5 +- 0.08, a text and any clip 0.17 +- 0.035, a
text and its clip 0.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

CLIPS_OF_A_VIDEO = 10
BLOCK = 1_000 * CLIPS_OF_A_VIDEO  # clips drawn together; a size is a prefix of every larger one
_TOPICS = 2_000
_SHARES = {"topic": 0.45, "video": 0.35, "clip": 0.2}  # of the variance within the cone
_SPECTRUM = -0.46  # standard deviation of direction i is i to this power: 42 directions in effect
_ON_AXIS, _CONTENT = 0.24, 0.31  # of a text's length: along the clips' axis, telling clips apart
_AGREEMENT = 0.6  # cosine of a text's content with that of its clip


@dataclass(frozen=True)
class MadeEmbeddings:
    """Draws clips and queries; the same ones every time."""

    clip_axis: Float32
    text_axis: Float32
    directions: Float32  # [E, E], scaled: a row times this has the spectrum
    topics: Float32

    @classmethod
    def of_width(cls, embed_dim: int) -> Self:
        """Make the space: its cones, directions and topics."""
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.standard_normal((embed_dim, embed_dim)))[0].astype(np.float32)
        scale = np.arange(1, embed_dim - 1, dtype=np.float32) ** _SPECTRUM
        directions = basis[2:] * (scale / np.linalg.norm(scale))[:, None]
        apart = np.sqrt(1 - _ON_AXIS**2 - _CONTENT**2)
        text_axis = (_ON_AXIS * basis[0] + apart * basis[1]).astype(np.float32)
        draws = rng.standard_normal((_TOPICS, len(directions)), np.float32)
        return cls(basis[0], text_axis, directions, draws @ directions)

    def clips(self, count: int) -> Iterator[Float32]:
        """Yield the first ``count`` clips in blocks, unit-norm float32 [up to BLOCK, E]."""
        for first in range(0, count, BLOCK):
            yield self._block(first // BLOCK)[: count - first]

    def _block(self, number: int) -> Float32:
        rng = np.random.default_rng((1, number))
        videos = BLOCK // CLIPS_OF_A_VIDEO
        topic = self.topics[rng.integers(0, _TOPICS, videos)]
        of_video = np.sqrt(_SHARES["topic"]) * topic
        of_video += np.sqrt(_SHARES["video"]) * self._content(rng, videos)
        of_clip = np.sqrt(_SHARES["clip"]) * self._content(rng, BLOCK)
        return unit(self.clip_axis + np.repeat(of_video, CLIPS_OF_A_VIDEO, axis=0) + of_clip)

    def texts(self, clips: Float32) -> Float32:
        """Draw a text of each clip: at a cosine of about 0.3 to it, float32 [Q, E]."""
        rng = np.random.default_rng(2)
        content = unit(clips - (clips @ self.clip_axis)[:, None] * self.clip_axis)
        noise = unit(self._content(rng, len(clips)))
        share = np.float32(np.sqrt(1 - _AGREEMENT**2))
        return unit(self.text_axis + _CONTENT * unit(_AGREEMENT * content + share * noise))

    def _content(self, rng: np.random.Generator, count: int) -> Float32:
        draws: Float32 = rng.standard_normal((count, len(self.directions)), np.float32)
        return draws @ self.directions


def unit(rows: Float32) -> Float32:
    """Scale rows to length 1."""
    scaled: Float32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)
