"""Where to look in a video: the windows that cover it, and the times of the frames inside one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_NEW_PART = 0.1
"""The smallest part of a window that must be new for one more window at the end of a video."""

_SAME = 1e-9
"""Seconds, and parts of a window: smaller differences are rounding noise of sums of floats."""


@dataclass(frozen=True)
class Span:
    """A stretch of a video.

    Attributes:
        start_s: Seconds of a player's clock, which is 0 where the file's first stream begins.
        end_s: As ``start_s``.
    """

    start_s: float
    end_s: float


def cut_windows(duration_s: float, window_s: float | None, stride_s: float | None) -> list[Span]:
    """Cover a video with windows of one length.

    Windows start at 0, stride, 2 x stride ... as long as they fit whole. The part that remains
    at the end gets one more window of full length, moved back so that it ends with the video;
    if that part is at most a tenth of a window (``MIN_NEW_PART``), the last window is stretched
    over it instead, so no window shows almost nothing new.

    Args:
        duration_s: Length of the video, seconds.
        window_s: Length of a window, seconds; None, or longer than the video: one span, all of it.
        stride_s: Seconds from one start to the next; None: as long as the window, so that
            windows touch. Longer than the window: the stretches between are left out.

    Returns:
        Spans inside [0, duration], sorted by start; the last one ends at ``duration_s``. They
        cover the whole video if the stride is not longer than the window.

    Raises:
        ValueError: If a duration, window or stride is not a positive finite number.
    """
    for name, value in (("duration_s", duration_s), ("window_s", window_s), ("stride_s", stride_s)):
        if value is not None and not (0 < value < np.inf):
            raise ValueError(f"{name} is {value}, expected a positive number of seconds.")
    if window_s is None or window_s >= duration_s:
        return [Span(0.0, duration_s)]
    stride = window_s if stride_s is None else stride_s
    whole = int((duration_s - window_s) / stride + _SAME) + 1
    starts = [min(i * stride, duration_s - window_s) for i in range(whole)]
    spans = [Span(start, start + window_s) for start in starts]
    remaining_s = duration_s - spans[-1].end_s
    if remaining_s > (MIN_NEW_PART + _SAME) * window_s:
        spans.append(Span(duration_s - window_s, duration_s))
    else:
        spans[-1] = Span(spans[-1].start_s, duration_s)
    return spans


def frame_times(
    span: Span, num_frames: int, rng: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Choose the times at which to look at a span.

    The span is cut into ``num_frames`` equal segments with one time in each.

    Args:
        span: The stretch of the video.
        num_frames: Number of segments F.
        rng: None: the centre of each segment (evaluation, serving); a generator: uniform inside
            each segment (training).

    Returns:
        Seconds, as the span's, ascending, float64 [F].

    Raises:
        ValueError: If ``num_frames`` is below 1 or the span ends before it starts.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, expected 1 or more.")
    if not span.start_s <= span.end_s:
        raise ValueError(f"the span {span.start_s} to {span.end_s} s ends before it starts.")
    inside = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    parts = (np.arange(num_frames) + inside) / num_frames
    times: NDArray[np.float64] = span.start_s + parts * (span.end_s - span.start_s)
    return np.minimum(times, span.end_s)
