import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dgl_runtime.search import metrics
from dgl_runtime.search.metrics import (
    RetrievalMetrics,
    direction_score,
    summarize,
    text_to_video,
    video_to_text,
)

# few distinct values, so that ties are common
TIED = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])


@st.composite
def retrieval(draw):
    """Similarity [Q, N] and caption_clip [Q], every clip with at least one caption."""
    num_clips = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, num_clips - 1), max_size=6))
    caption_clip = np.array(draw(st.permutations([*range(num_clips), *extra])), np.int64)
    return draw(arrays(np.float64, (len(caption_clip), num_clips), elements=TIED)), caption_clip


def slow_rank(values, relevant):
    best = max(values[i] for i in relevant)
    return 1 + sum(value >= best for i, value in enumerate(values) if i not in relevant)


@given(retrieval())
def test_ranks_equal_a_slow_obvious_reference(case):
    similarity, caption_clip = case
    num_clips = similarity.shape[1]
    captions_of = [set(np.flatnonzero(caption_clip == clip)) for clip in range(num_clips)]
    grouped = [
        [max(similarity[caption, clip] for caption in captions) for captions in captions_of]
        for clip in range(num_clips)
    ]
    np.testing.assert_array_equal(
        text_to_video(similarity, caption_clip),
        [slow_rank(row, {clip}) for row, clip in zip(similarity, caption_clip, strict=True)],
    )
    np.testing.assert_array_equal(
        video_to_text(similarity, caption_clip),
        [slow_rank(similarity[:, clip], captions_of[clip]) for clip in range(num_clips)],
    )
    np.testing.assert_array_equal(
        video_to_text(similarity, caption_clip, group_captions=True),
        [slow_rank(row, {clip}) for clip, row in enumerate(grouped)],
    )


def all_ranks(similarity, caption_clip):
    return (
        text_to_video(similarity, caption_clip),
        video_to_text(similarity, caption_clip),
        video_to_text(similarity, caption_clip, group_captions=True),
    )


@given(retrieval(), st.integers(1, 20))
def test_ranks_in_parts_equal_those_of_the_whole(case, part):
    whole = all_ranks(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_PART", part)
        for found, expected in zip(all_ranks(*case), whole, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_thousand_by_a_thousand_take_less_than_a_second():
    similarity = np.random.default_rng(0).standard_normal((1000, 1000), np.float32)
    start = time.perf_counter()
    all_ranks(similarity, np.arange(1000))
    assert time.perf_counter() - start < 1


def test_thirty_thousand_captions_of_three_thousand_clips_need_little_memory():
    similarity = np.random.default_rng(0).random((30_000, 3_000), np.float32)
    tracemalloc.start()
    try:
        all_ranks(similarity, np.arange(30_000) % 3_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # beside the 360 MB of the similarities


@given(retrieval())
def test_a_rank_lies_between_one_and_the_number_of_candidates(case):
    similarity, caption_clip = case
    found = text_to_video(similarity, caption_clip)
    assert found.shape == (len(caption_clip),)
    assert found.dtype == np.int64
    assert found.min() >= 1
    assert found.max() <= similarity.shape[1]


@given(retrieval(), st.randoms(use_true_random=False))
def test_a_permutation_of_the_clips_keeps_the_ranks_of_the_captions(case, random):
    similarity, caption_clip = case
    order = list(range(similarity.shape[1]))
    random.shuffle(order)
    permuted = text_to_video(similarity[:, order], np.argsort(order)[caption_clip])
    np.testing.assert_array_equal(permuted, text_to_video(similarity, caption_clip))


@given(retrieval())
def test_recall_grows_with_its_limit(case):
    metrics = summarize(text_to_video(*case))
    assert 0 <= metrics.r1 <= metrics.r5 <= metrics.r10 <= 100


@given(retrieval())
def test_one_caption_per_clip_ranks_the_same_with_and_without_groups(case):
    similarity, caption_clip = case
    _, first = np.unique(caption_clip, return_index=True)
    similarity, caption_clip = similarity[first], caption_clip[first]
    np.testing.assert_array_equal(
        video_to_text(similarity, caption_clip),
        video_to_text(similarity, caption_clip, group_captions=True),
    )


def test_four_tied_queries_have_four_ranks_and_a_collapsed_model_scores_worst():
    # "Sorted minus diagonal equals zero" gave 16 ranks here, a quarter of them 1.
    found = text_to_video(np.ones((4, 4)), np.arange(4))
    np.testing.assert_array_equal(found, [4, 4, 4, 4])
    assert summarize(found).r1 == 0


def test_the_best_of_several_captions_counts():
    similarity = np.array([[0.9, 0.5], [0.1, 0.2], [0.8, 0.5], [0.2, 0.5]])
    caption_clip = np.array([1, 0, 0, 1])  # clip 0 has captions 1 and 2
    np.testing.assert_array_equal(video_to_text(similarity, caption_clip), [2, 2])


def test_groups_of_captions_compete_as_one_candidate():
    similarity = np.array([[0.5, 0.1], [0.8, 0.9], [0.7, 0.2]])  # captions 1 and 2 tell clip 1
    caption_clip = np.array([0, 1, 1])
    np.testing.assert_array_equal(video_to_text(similarity, caption_clip), [3, 1])
    np.testing.assert_array_equal(
        video_to_text(similarity, caption_clip, group_captions=True), [2, 1]
    )


def test_summary_of_known_ranks():
    found = summarize(np.array([1, 1, 2, 5, 6, 10, 11, 99]))
    assert found == RetrievalMetrics(
        r1=25.0, r5=50.0, r10=75.0, median_rank=5.5, mean_rank=16.875, num_queries=8
    )
    assert [type(value) for value in vars(found).values()] == [float] * 5 + [int]


def test_direction_score_counts_strict_wins_only():
    own, reversed_event = np.array([0.5, 0.2, 0.3, 0.9]), np.array([0.4, 0.2, 0.6, 0.1])
    assert direction_score(own, reversed_event) == 50.0
    assert direction_score(own, own) == 0.0
    assert direction_score(own[:1], reversed_event[:1]) == 100.0
    assert type(direction_score(own, own)) is float


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_similarity_that_is_not_finite_is_rejected(bad):
    similarity = np.eye(3)
    similarity[1, 2] = bad
    for measure in (text_to_video, video_to_text):
        with pytest.raises(ValueError, match="must be finite floats: a NaN has no rank"):
            measure(similarity, np.arange(3))
    with pytest.raises(ValueError, match="must be finite"):
        video_to_text(similarity, np.arange(3), group_captions=True)
    with pytest.raises(ValueError, match="must be finite"):
        direction_score(np.ones(3), similarity[1])
    with pytest.raises(ValueError, match="must be finite"):
        direction_score(similarity[1], np.ones(3))


@pytest.mark.parametrize("measure", [text_to_video, video_to_text])
def test_misfits_are_named(measure):
    similarity = np.eye(3)
    with pytest.raises(ValueError, match=r"similarity has shape \[3\], expected \[Q, N\]"):
        measure(np.ones(3), np.arange(3))
    with pytest.raises(ValueError, match=r"similarities \(int64\) must be finite floats"):
        measure(np.eye(3, dtype=np.int64), np.arange(3))
    with pytest.raises(ValueError, match=r"caption_clip is int64 \[2\], expected integers \[3\]"):
        measure(similarity, np.arange(2))
    with pytest.raises(ValueError, match=r"caption_clip is float64 \[3\], expected integers \[3\]"):
        measure(similarity, np.arange(3.0))
    with pytest.raises(ValueError, match="caption_clip holds 3, expected 0 to 2"):
        measure(similarity, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="caption_clip holds -1"):
        measure(similarity, np.array([0, 1, -1]))


def test_clips_without_captions_and_figures_of_nothing_are_refused():
    similarity = np.eye(3)
    for grouped in (False, True):
        with pytest.raises(ValueError, match="1 of 3 clips have no caption, first clip 2"):
            video_to_text(similarity, np.array([0, 1, 1]), group_captions=grouped)
    for ranks in (np.array([0, 1]), np.array([], np.int64), np.array([1.0]), np.array([[1, 2]])):
        with pytest.raises(ValueError, match=r"expected integers \[Q\] from 1"):
            summarize(ranks)
    for shapes in ((2,), (3,)), ((0,), (0,)), ((1, 2), (1, 2)):
        with pytest.raises(ValueError, match=r"got similarities \[.*\] and \[.*\], expected"):
            direction_score(*map(np.ones, shapes))
