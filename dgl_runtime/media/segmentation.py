"""How videos are cut into clips: whole, in windows of one length, at their shots, or around one moment."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dgl_runtime.errors import ConfigError, MediaError, reason_of
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.shots import find_shots
from dgl_runtime.media.windows import Span, cut_windows

_SHOTS = "shots"
_TOGETHER_S = 0.1  # pictures so long after the sound begin with it: encoders lead sound in
_MOST_WINDOWS = 1000  # for each frame; a picture every hour has 360 windows of 10 s


@dataclass(frozen=True)
class Segmentation:
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
    def from_text(cls, text: str) -> "Segmentation":
        """Read what ``str`` wrote."""
        what, *numbers = text.split()
        window_s, stride_s, around_s = (None if n == "None" else float(n) for n in numbers)
        return cls(window_s, stride_s, what == _SHOTS, around_s)

    def require_installed(self) -> None:
        """Refuse shots without the extra ``shots``, or where it does not start.

        Raises:
            ModuleNotFoundError: It is not installed.
            ConfigError: OpenCV lacks a library of the system.
        """
        if not self.at_shots:
            return
        for name in ("scenedetect", "cv2"):
            if find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        try:
            import cv2  # noqa: F401 - or every single video would be found to be unreadable
        except ImportError as error:
            raise ConfigError(
                f"shots need OpenCV, which does not import: {reason_of(error)}. Install the library of the "
                "system that is named, or opencv-python-headless in place of opencv-python."
            ) from error

    def spans(self, path: Path, sign: Callable[[], None]) -> tuple[float, list[Span]]:
        """The second at which a video ends, and its clips in order of their start.

        A window in which no frame begins shows the one on display.

        Args:
            path: The video.
            sign: Called now and then while a whole video is decoded to find its shots.

        Raises:
            MediaError: It cannot be read, or hardly any of its windows has a frame of its own.
            ModuleNotFoundError: Shots are asked for without the extra ``shots``.
        """
        index = read_index(path)
        if self.around_s is not None:
            return index.end_s, [self._moment(path, self.around_s, index)]
        begin_s = index.start_s if index.start_s > _TOGETHER_S else 0.0
        duration_s, step = index.end_s - begin_s, self.stride_s or self.window_s
        if step is not None and duration_s / step > _MOST_WINDOWS * len(index.shown):
            raise MediaError(
                f"{path} claims to last {duration_s:.0f} s with {len(index.shown)} frames, which is "
                f"{_MOST_WINDOWS} windows of {step:g} s or more for each: its timestamps are damaged, or "
                "the windows too short. Give a longer --window, or re-encode it."
            )
        whole = Span(begin_s, index.end_s)
        spans = [
            Span(shot.start_s + part.start_s, shot.start_s + part.end_s)
            for shot in (find_shots(path, whole, sign) if self.at_shots else [whole])
            for part in cut_windows(shot.end_s - shot.start_s, self.window_s, self.stride_s)
        ]
        return index.end_s, spans

    def _moment(self, path: Path, around_s: float, index: PacketIndex) -> Span:
        if around_s >= index.end_s:
            raise MediaError(f"{path} lasts {index.end_s:g} s, so it has no second {around_s:g}.")
        # Until the first frame is shown, a player waits for it.
        middle_s, half_s = max(around_s, index.start_s), (self.window_s or index.duration_s) / 2
        return Span(max(middle_s - half_s, index.start_s), min(middle_s + half_s, index.end_s))
