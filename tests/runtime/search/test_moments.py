"""Clips grouped into moments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.search.moments import GROUPINGS, Hit, group


def hit(video, start_s, end_s, similarity, row=0):
    return Hit(video, start_s, end_s, similarity, (1.0,), row)


RANKED = [
    hit("a", 10, 20, 0.9, 0),
    hit("a", 15, 25, 0.8, 1),
    hit("b", 0, 10, 0.7, 2),
    hit("a", 40, 50, 0.6, 3),
    hit("a", 5, 15, 0.5, 4),
    hit("b", 10, 20, 0.4, 5),
]


def spans(hits):
    return [(one.video, one.start_s, one.end_s, one.similarity) for one in hits]


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        ("none", spans(RANKED)),
        ("video", [("a", 10, 20, 0.9), ("b", 0, 10, 0.7)]),
        ("apart", [("a", 10, 20, 0.9), ("b", 0, 10, 0.7), ("a", 40, 50, 0.6), ("b", 10, 20, 0.4)]),
        ("merge", [("a", 5, 25, 0.9), ("b", 0, 20, 0.7), ("a", 40, 50, 0.6)]),
    ],
)
def test_groupings(grouping, expected):
    assert spans(group(RANKED, grouping, 10)) == expected
    assert spans(group(RANKED, grouping, 2)) == expected[:2]


def test_a_clip_between_two_moments_joins_them():
    ranked = [
        hit("a", 0, 10, 0.9),
        hit("a", 20, 30, 0.8),
        hit("b", 0, 5, 0.7),
        hit("a", 10, 20, 0.6),
    ]
    assert spans(group(ranked, "merge", 10)) == [("a", 0, 30, 0.9), ("b", 0, 5, 0.7)]


def test_no_more_clips_are_taken_than_needed():
    taken = iter(RANKED)
    assert len(group(taken, "apart", 2)) == 2
    assert next(taken).row == 3


@st.composite
def ranked_hits(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 30))
    starts = rng.integers(0, 12, count) * 5
    videos = rng.choice(["a", "b", "c"], count)
    similarity = np.sort(rng.random(count))[::-1]
    return [
        hit(str(v), float(s), float(s + 10), float(x), n)
        for n, (v, s, x) in enumerate(zip(videos, starts, similarity, strict=True))
    ]


@given(ranked_hits(), st.sampled_from(GROUPINGS), st.integers(1, 40))
def test_moments_are_ranked_apart_and_cover_the_best_clip(ranked, grouping, top_k):
    found = group(ranked, grouping, top_k)
    similarities = [one.similarity for one in found]
    assert similarities == sorted(similarities, reverse=True)
    assert len(found) <= top_k
    assert bool(found) == bool(ranked)
    if found:
        assert found[0].row == ranked[0].row
    if grouping in ("apart", "merge"):
        for number, one in enumerate(found):
            for other in found[number + 1 :]:
                apart = one.end_s <= other.start_s or other.end_s <= one.start_s
                assert one.video != other.video or apart
    if grouping == "video":
        assert len({one.video for one in found}) == len(found)
