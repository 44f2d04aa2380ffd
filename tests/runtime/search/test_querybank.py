"""Each correction against its published definition, written as loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dgl_runtime.search import metrics
from dgl_runtime.search.querybank import (
    activation_set,
    choose_temperature,
    dual_softmax,
    hubness,
    inverted_softmax,
    qb_norm,
)

COSINES = st.floats(-1, 1, width=32)
BETAS = st.sampled_from([1.0, 20.0, 100.0])


@st.composite
def matrices(draw):
    """Queries and a bank against the same candidates."""
    queries, bank, candidates = (draw(st.integers(1, 6)) for _ in range(3))
    return [draw(arrays(np.float32, (n, candidates), elements=COSINES)) for n in (queries, bank)]


def slow_inverted_softmax(similarity, bank, beta):
    return [
        [
            math.exp(beta * float(s)) / sum(math.exp(beta * float(b)) for b in bank[:, g])
            for g, s in enumerate(row)
        ]
        for row in similarity
    ]


@given(matrices(), BETAS)
def test_dual_softmax_equals_its_definition(case, beta):
    similarity, _ = case
    prior = slow_inverted_softmax(similarity, similarity, beta)
    expected = similarity * np.array(prior)
    np.testing.assert_allclose(dual_softmax(similarity, beta), expected, rtol=1e-4, atol=1e-30)


@given(matrices(), BETAS)
def test_inverted_softmax_equals_its_definition(case, beta):
    similarity, bank = case
    found = inverted_softmax(similarity, hubness(bank, beta))
    expected = np.log(slow_inverted_softmax(similarity, bank, beta)) / beta
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(matrices(), BETAS)
def test_qb_norm_equals_its_definition(case, beta):
    similarity, bank = case
    hubs = {max(range(len(row)), key=lambda g: row[g]) for row in bank}
    corrected = np.log(slow_inverted_softmax(similarity, bank, beta)) / beta
    expected = [
        corrected[q] if max(range(len(row)), key=lambda g: row[g]) in hubs else row
        for q, row in enumerate(similarity)
    ]
    found = qb_norm(similarity, hubness(bank, beta), activation_set(bank))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(matrices())
def test_a_bank_read_in_parts_gives_the_same(case):
    bank = case[1]
    with pytest.MonkeyPatch.context() as patch:
        whole = hubness(bank, 20.0), activation_set(bank)
        patch.setattr(metrics, "_PART", 3)
        np.testing.assert_allclose(hubness(bank, 20.0), whole[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(activation_set(bank), whole[1])


@pytest.mark.parametrize("part", [100, 2**22])
def test_hubness_of_a_large_bank_is_summed_up_without_loss(part, monkeypatch):
    monkeypatch.setattr(metrics, "_PART", part)
    bank = np.full((200_000, 2), 0.1, np.float32)
    bank[0] = 0.9
    sums = math.exp(float(bank[0, 0])) + 199_999 * math.exp(float(bank[1, 0]))
    # a sum of so many float32 numbers is off by 1e-4 and more
    np.testing.assert_allclose(hubness(bank, 1.0), [math.log(sums)] * 2, rtol=3e-7)


def test_hubness_does_not_overflow_and_ends_in_the_highest_similarity():
    bank = np.array([[0.9, -0.5], [0.1, -0.9]], np.float32)
    found = hubness(bank, 1e4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.9, -0.5], rtol=1e-6)


def test_the_activation_set_is_what_is_nearest_to_the_bank():
    bank = np.array([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1]], np.float32)
    np.testing.assert_array_equal(activation_set(bank), [False, True, False])


def test_a_hub_stops_to_win_every_query():
    hub_first = np.array([[0.50, 0.45], [0.50, 0.30]], np.float32)
    bank = np.array([[0.6, 0.2], [0.7, 0.1]], np.float32)
    given = hub_first.copy()
    found = qb_norm(hub_first, hubness(bank, 20.0), activation_set(bank))
    np.testing.assert_array_equal(found.argmax(axis=1), [1, 1])
    np.testing.assert_array_equal(hub_first, given)  # what was given stays as it is


def test_the_temperature_is_the_best_on_validation_and_the_smallest_of_equals():
    scores = {1.0: (50.0, -2.0), 5.0: (60.0, -3.0), 20.0: (60.0, -2.5), 50.0: (60.0, -2.5)}
    for betas in (tuple(scores), tuple(reversed(scores))):
        assert choose_temperature(scores.__getitem__, betas) == 20.0


def test_misfits_are_named():
    with pytest.raises(ValueError, match="got 0 queries and beta 1"):
        hubness(np.zeros((0, 3), np.float32), 1.0)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="a finite beta above 0"):
            hubness(np.zeros((1, 3), np.float32), beta)
