"""InputSpec, in the manifest: how a model wants its frames (FrameSpec) and its texts (TextSpec)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dgl_runtime.bundle.cleaning import CLEANINGS
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_runtime.typed_fields import typed

READ_OUTS = ("end", "first", "last")
CLIP_START, CLIP_END = 49406, 49407  # ids of the start and the end token in CLIP's vocabulary


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

    @property
    def special_tokens(self) -> int:
        """How many tokens a row has beside those of the text itself."""
        return (self.start_id is not None) + (self.end_id is not None)

    @property
    def most_pieces(self) -> int:
        """How many tokens of a text itself are read."""
        return self.max_tokens - self.special_tokens

    def faults(self) -> Iterator[str]:
        """What is wrong with these values, each in words."""
        for name, known in (("clean", CLEANINGS), ("read", READ_OUTS)):
            if (word := getattr(self, name)) not in known:
                yield f"{name} is {word!r}, known are {', '.join(known)}"
        if (most := self.most_pieces) < 1:
            yield f"max_tokens is {self.max_tokens}, it must be {self.max_tokens - most + 1} or more"
        if self.pad_to is not None and self.pad_to < self.max_tokens:
            yield f"pad_to is {self.pad_to}, it must be max_tokens, {self.max_tokens}, or more"
        for name in ("pad_id", "start_id", "end_id"):
            if (number := getattr(self, name)) is not None and number < 0:
                yield f"{name} is {number}, it must be 0 or more"
        if self.read == "end" and self.end_id is None:
            yield "read is 'end', but end_id is None"


@dataclass(frozen=True)
class InputSpec:
    """Both sides of a model's input."""

    frames: FrameSpec
    texts: TextSpec

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "InputSpec":
        """Take what ``dataclasses.asdict`` of a spec is after a way through JSON.

        Raises:
            KeyError: A side or a field is missing.
            TypeError: One is missing, unknown or of another type.
        """
        frames, texts = FrameSpec.from_json(told["frames"]), TextSpec(**told["texts"])
        return cls(**{**told, "frames": typed(frames), "texts": typed(texts)})


def clip_texts(max_tokens: int) -> TextSpec:
    """CLIP's own rules for texts."""
    return TextSpec(
        clean="clip",
        max_tokens=max_tokens,
        pad_id=0,
        pad_to=None,
        start_id=CLIP_START,
        end_id=CLIP_END,
        read="end",
    )


def clip_frames(
    num_frames: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> FrameSpec:
    """CLIP's own rules for frames."""
    return FrameSpec(
        num_frames=num_frames,
        size=size,
        resize="shortest",
        interpolation="bicubic",
        mean=mean,
        std=std,
        sampling="centers",
    )
