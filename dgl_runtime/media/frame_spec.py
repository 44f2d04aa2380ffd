"""FrameSpec: how many frames, of what size, resized how. Settings alone; pixels.py applies them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RESIZES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")
SAMPLINGS = ("centers",)


@dataclass(frozen=True)
class FrameSpec:
    """How a clip becomes pixels, uint8 [F, 3, S, S] RGB, and what the graph makes of their numbers."""

    num_frames: int  # F
    size: int  # S, pixels
    # shortest: the shorter side becomes S and the centre is cut out; squash: both sides become S;
    # longest: the longer side becomes S and black fills the rest.
    resize: str
    interpolation: str
    mean: tuple[float, ...]  # already part of the clip encoder, which takes uint8 pixels
    std: tuple[float, ...]
    sampling: str  # which frames of a clip; "centers": those at the centres of F equal segments

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "FrameSpec":
        """Take what ``dataclasses.asdict`` of a spec is after a way through JSON.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is missing or unknown.
        """
        numbers = {name: tuple(told[name]) for name in ("mean", "std")}
        return cls(**{**told, **numbers})

    def faults(self) -> Iterator[str]:
        """What is wrong with these values, each in words."""
        for name, known in (
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
            ("sampling", SAMPLINGS),
        ):
            if (word := getattr(self, name)) not in known:
                yield f"{name} is {word!r}, known are {', '.join(known)}"
        for name in ("num_frames", "size"):
            if (number := getattr(self, name)) < 1:
                yield f"{name} is {number}, it must be 1 or more"
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if len(numbers) != 3 or not all(isinstance(one, float | int) for one in numbers):
                yield f"{name} is {numbers}, expected 3 numbers"
