"""How videos are cut into clips: whole, in windows of one length, at their shots, or around one moment."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dgl_runtime.errors import MediaError
from dgl_runtime.packet_index import read_index
from dgl_runtime.windows import Span, cut_windows

_SHOTS = "shots"
SHORTEST_SHOT_S = 0.6
_SECONDS_AT_ONCE = 10.0  # of a video, between signs of life


@dataclass(frozen=True)
class Cutting:
    """Whole videos; windows; shots, and those longer than a window in windows; or one moment.

    Attributes:
        window_s: Length of a window, seconds; None: no windows.
        stride_s: From one window's start to the next; None: the window's length.
        at_shots: Cut where one shot ends and the next begins.
        around_s: One window, with this second in its middle.
    """

    window_s: float | None = None
    stride_s: float | None = None
    at_shots: bool = False
    around_s: float | None = None

    def __str__(self) -> str:
        """Name it, the same text for the same clips; :meth:`from_text` reads it."""
        return (
            f"{_SHOTS if self.at_shots else 'all'} {self.window_s} {self.stride_s} {self.around_s}"
        )

    @classmethod
    def from_text(cls, text: str) -> "Cutting":
        """Read what ``str`` wrote."""
        what, *numbers = text.split()
        window_s, stride_s, around_s = (None if n == "None" else float(n) for n in numbers)
        return cls(window_s, stride_s, what == _SHOTS, around_s)

    def spans(self, path: Path, sign: Callable[[], None]) -> tuple[float, list[Span]]:
        """A video's duration in seconds, and its clips in order of their start.

        Args:
            path: The video.
            sign: Called now and then while a whole video is decoded to find its shots.

        Raises:
            MediaError: It cannot be read, or its timestamps are damaged.
            ModuleNotFoundError: Shots are asked for without the extra ``shots``.
        """
        index = read_index(path)
        duration_s = index.duration_s
        if self.around_s is not None:
            return duration_s, [self._moment(path, duration_s)]
        step = self.stride_s or self.window_s
        if step is not None and duration_s / step > max(len(index.shown), 1):
            raise MediaError(
                f"{path} claims to last {duration_s:.0f} s with {len(index.shown)} frames, "
                f"fewer than its windows of {step} s: its timestamps are damaged. Re-encode it."
            )
        whole = find_shots(path, duration_s, sign) if self.at_shots else [Span(0.0, duration_s)]
        spans = [
            Span(shot.start_s + part.start_s, shot.start_s + part.end_s)
            for shot in whole
            for part in cut_windows(shot.end_s - shot.start_s, self.window_s, self.stride_s)
        ]
        return duration_s, spans

    def _moment(self, path: Path, duration_s: float) -> Span:
        middle_s, half_s = self.around_s or 0.0, (self.window_s or duration_s) / 2
        if middle_s >= duration_s:
            raise MediaError(f"{path} lasts {duration_s:g} s, so it has no second {middle_s:g}.")
        return Span(max(middle_s - half_s, 0.0), min(middle_s + half_s, duration_s))


def find_shots(path: Path, duration_s: float, sign: Callable[[], None]) -> list[Span]:
    """Shots of a video, by PySceneDetect's adaptive detector; it decodes every frame.

    Raises:
        MediaError: PySceneDetect cannot read it.
    """
    from scenedetect import AdaptiveDetector, SceneManager
    from scenedetect.backends.pyav import VideoStreamAv

    try:
        video = VideoStreamAv(str(path))
        manager = SceneManager()
        manager.add_detector(
            AdaptiveDetector(min_scene_len=round(SHORTEST_SHOT_S * video.frame_rate))
        )
        while manager.detect_scenes(video, duration=_SECONDS_AT_ONCE):
            sign()
        starts = [start.seconds for start, _ in manager.get_scene_list(start_in_scene=True)]
    except (OSError, RuntimeError, ValueError) as error:
        raise MediaError(
            f"{path}: its shots cannot be found ({error}). Index it in windows."
        ) from error
    inside = [s for s in starts if SHORTEST_SHOT_S <= s <= duration_s - SHORTEST_SHOT_S]
    return [Span(*ends) for ends in pairwise([0.0, *inside, duration_s])]
