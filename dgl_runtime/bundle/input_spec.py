"""What a model wants of its inputs, as data in the manifest: a runtime has no rule of its own for a model."""

from dataclasses import dataclass

from dgl_runtime.media.frame_spec import FrameSpec

CLEANINGS = ("clip", "canonicalize", "blip", "whitespace")
READ_OUTS = ("end", "first", "last")


@dataclass(frozen=True)
class TextSpec:
    """How a text becomes token ids int32 [L], and which of them the text encoder reads."""

    clean: str  # one of CLEANINGS
    max_tokens: int  # the longest row, start and end token included
    pad_id: int
    pad_to: int | None  # every row has this length; None: as long as the longest of its batch
    start_id: int | None
    end_id: int | None
    read: str  # one of READ_OUTS: the position whose state is the text's embedding


@dataclass(frozen=True)
class InputSpec:
    """Both sides of a model's input."""

    frames: FrameSpec
    texts: TextSpec
