"""The row that every data set is read into: one caption of one clip."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CaptionedClip:
    """One caption of one clip; a clip with several captions is several of these.

    Attributes:
        video: The file.
        caption: What the clip shows.
        start_s: Where the clip begins in the video, seconds; None: at its first frame.
        end_s: Where it ends, seconds; None: at its last frame.
        split: train, val or test.
        reversed_caption: What the clip shows when it is played backwards; None: not known.
    """

    video: Path
    caption: str
    start_s: float | None = None
    end_s: float | None = None
    split: str = "train"
    reversed_caption: str | None = None

    @property
    def place(self) -> tuple[Path, float | None, float | None]:
        """The clip itself: rows with the same place are captions of one clip."""
        return self.video, self.start_s, self.end_s
