"""What a model wants of a clip's frames: how many, how large, and how a picture becomes one."""

from dataclasses import dataclass

RESIZES = ("shortest", "squash", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class FrameSpec:
    """How a clip becomes pixels, uint8 [F, 3, S, S] RGB, and what the graph makes of their numbers."""

    num_frames: int  # F
    size: int  # S, pixels
    # shortest: the shorter side becomes S and the centre is cut out; squash: both sides become S;
    # longest: the longer side becomes S and black fills the rest.
    resize: str
    interpolation: str
    mean: tuple[float, ...]  # already part of the clip graph, which takes uint8 pixels
    std: tuple[float, ...]
    sampling: str  # which frames of a clip; "centers": those at the centres of F equal segments
