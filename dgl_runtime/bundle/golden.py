"""Golden inputs of a bundle with their results, so that any machine can check itself."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.manifest import Manifest

WITHOUT_RAW = 2  # the last schema whose golden inputs begin with tokens and pixels


@dataclass(frozen=True)
class RawInputs:
    """What the first of all inputs are: texts and a picture, before anything is done to them."""

    texts: NDArray[np.str_]  # [Q], of which the golden tokens come
    picture: NDArray[np.uint8]  # [H, W, 3] RGB
    pixels: NDArray[np.uint8]  # [3, S, S], what the picture becomes


@dataclass(frozen=True)
class Golden:
    """A few inputs with their results.

    The results are the trained model's; below fp32 they are those of the graphs that passed the
    quality gate, on the machine that exported them.
    """

    tokens: NDArray[np.int32]  # [Q, L]
    lengths: NDArray[np.int64]  # [Q], of each row where it comes alone
    frames: NDArray[np.uint8]  # [N, F, 3, S, S]
    caption_embeddings: NDArray[np.float32]  # [Q, E]
    clip_embeddings: NDArray[np.float32]  # [N, E]
    frame_weights: NDArray[np.float32]  # [N, F]
    raw: RawInputs | None  # None in bundles of schema 2
    inputs: InputSpec | None  # the model's at export; None where earlier versions exported

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> "Golden":
        """Take the arrays of a ``golden.npz``.

        Raises:
            KeyError: An array is missing.
            TypeError: An array is missing or unknown.
            ValueError: They do not fit the manifest or each other.
        """
        found = dict(arrays)
        raw, told = None, found.pop("inputs", None)
        if manifest.schema_version > WITHOUT_RAW:
            raw = RawInputs(**{one.name: found.pop(one.name) for one in fields(RawInputs)})
        else:
            before_end = np.cumsum(found["tokens"] == manifest.inputs.texts.end_id, axis=-1) == 0
            found["lengths"] = before_end.sum(axis=-1) + 1
        inputs = None if told is None else InputSpec.from_json(json.loads(str(told)))
        golden = cls(**found, raw=raw, inputs=inputs)
        golden._check(manifest)
        return golden

    def _check(self, manifest: Manifest) -> None:
        queries, clips = len(self.tokens), len(self.frames)
        spec, width = manifest.inputs.frames, manifest.embed_dim
        num_frames, size = spec.num_frames, spec.size
        expected: dict[str, tuple[type, tuple[int, ...]]] = {
            "tokens": (np.int32, (queries, self.tokens.shape[-1])),
            "lengths": (np.int64, (queries,)),
            "frames": (np.uint8, (clips, num_frames, 3, size, size)),
            "caption_embeddings": (np.float32, (queries, width)),
            "clip_embeddings": (np.float32, (clips, width)),
            "frame_weights": (np.float32, (clips, num_frames)),
        }
        if self.raw is not None:
            expected["texts"] = (np.str_, (queries,))
            expected["picture"] = (np.uint8, (*self.raw.picture.shape[:2], 3))
            expected["pixels"] = (np.uint8, (3, size, size))
        arrays = self._arrays()
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            if array.dtype.type is not dtype or array.shape != shape or not array.size:
                raise ValueError(
                    f"{name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}"
                )

    def save(self, path: Path) -> None:
        """Write ``golden.npz``."""
        np.savez_compressed(path, **self._arrays())

    def _arrays(self) -> dict[str, Any]:
        """All of them by name."""
        arrays = {**vars(self), **({} if self.raw is None else vars(self.raw))}
        del arrays["raw"], arrays["inputs"]
        if self.inputs is not None:
            arrays["inputs"] = np.array(json.dumps(asdict(self.inputs)))
        return arrays
