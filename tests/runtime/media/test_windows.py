from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.media.windows import MIN_NEW_PART, Span, cut_windows, frame_times

seconds = st.floats(0.05, 500.0)
lengths = st.floats(2.0, 60.0)


def test_windows_step_by_the_stride_and_the_last_one_moves_back():
    assert cut_windows(10.0, 4.0, 2.5) == [Span(0, 4), Span(2.5, 6.5), Span(5, 9), Span(6, 10)]


def test_windows_touch_without_a_stride():
    assert cut_windows(6.0, 2.0, None) == [Span(0, 2), Span(2, 4), Span(4, 6)]


def test_a_tiny_rest_stretches_the_last_window():
    assert cut_windows(6.1, 2.0, 2.0) == [Span(0, 2), Span(2, 4), Span(4, 6.1)]


@pytest.mark.parametrize("window_s", [None, 5.0, 60.0])
def test_a_window_of_the_whole_video_is_one_span(window_s):
    assert cut_windows(5.0, window_s, 1.0) == [Span(0.0, 5.0)]


@pytest.mark.parametrize("stride", ["0.1", "0.3", "0.7"])
def test_sums_of_floats_make_no_extra_window(stride):
    assert len(cut_windows(21 * float(stride), float(stride), float(stride))) == 21


def test_rounding_takes_no_window_away():
    # (3.3 - 3) / 0.1 is 2.9999999999999982; without the fourth window the third would be 3.1 s long
    spans = cut_windows(3.3, 3.0, 0.1)
    np.testing.assert_allclose([span.start_s for span in spans], [0, 0.1, 0.2, 0.3])
    assert spans[-1] == Span(3.3 - 3.0, 3.3)


def test_a_rest_of_a_tenth_up_to_rounding_makes_no_window():
    assert cut_windows(6.2, 2.0, 2.0)[-1] == Span(4.0, 6.2)  # 6.2 - 6 is 0.20000000000000018


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["duration_s", "window_s", "stride_s"])
def test_numbers_that_are_no_lengths_are_refused(bad, name):
    arguments = {"duration_s": 10.0, "window_s": 2.0, "stride_s": 1.0, name: bad}
    with pytest.raises(ValueError, match=f"^{name} is .*, expected a positive number of seconds"):
        cut_windows(**arguments)


@given(duration_s=seconds, window_s=lengths, part=st.floats(0.1, 3.0))
def test_windows_lie_inside_are_sorted_and_end_with_the_video(duration_s, window_s, part):
    spans = cut_windows(duration_s, window_s, part * window_s)
    starts = [span.start_s for span in spans]
    assert starts == sorted(set(starts))
    assert all(0 <= span.start_s < span.end_s <= duration_s for span in spans)
    assert spans[0].start_s == 0
    assert spans[-1].end_s == duration_s


@given(duration_s=seconds, window_s=lengths, part=st.floats(0.1, 1.0))
def test_windows_cover_the_video_without_nearly_equal_ones(duration_s, window_s, part):
    spans = cut_windows(duration_s, window_s, part * window_s)
    for before, after in pairwise(spans):
        assert after.start_s <= before.end_s + 1e-6
        assert after.end_s - before.end_s > 0.99 * MIN_NEW_PART * window_s
    longest = max(span.end_s - span.start_s for span in spans)
    assert longest <= (1 + MIN_NEW_PART) * window_s + 1e-6


def test_frame_times_are_the_centres_of_equal_segments():
    np.testing.assert_allclose(frame_times(Span(1.0, 5.0), 4), [1.5, 2.5, 3.5, 4.5])


def test_a_span_of_no_length_has_one_time():
    np.testing.assert_array_equal(frame_times(Span(2.0, 2.0), 3), [2.0, 2.0, 2.0])


@given(
    start_s=st.floats(0, 1e4),
    length_s=st.floats(1e-3, 1e4),
    num_frames=st.integers(1, 64),
    seed=st.integers(0, 99),
)
def test_random_frame_times_stay_in_their_segments(start_s, length_s, num_frames, seed):
    span = Span(start_s, start_s + length_s)
    times = frame_times(span, num_frames, np.random.default_rng(seed))
    edges = np.linspace(span.start_s, span.end_s, num_frames + 1)
    assert times.shape == (num_frames,)
    assert times.dtype == np.float64
    assert (times >= edges[:-1] - 1e-9).all()
    assert (times <= edges[1:] + 1e-9).all()


def test_random_frame_times_fall_anywhere_in_their_segments():
    times = frame_times(Span(0, 1000), 1000, np.random.default_rng(0))
    counts, _ = np.histogram(times - np.arange(1000), 10, (0, 1))
    assert counts.min() > 60
    assert counts.sum() == 1000


def test_random_frame_times_repeat_with_their_seed():
    first, second = (frame_times(Span(0, 9), 5, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("span", "num_frames"), [(Span(0, 1), 0), (Span(2, 1), 3)])
def test_impossible_frame_times_are_refused(span, num_frames):
    with pytest.raises(ValueError, match=r"expected 1 or more|ends before it starts"):
        frame_times(span, num_frames)
