import gc
from collections import Counter
from itertools import pairwise

import pytest

from dgl_bench.timing import Paired, Spread, in_turn, rotating_orders, time_paired


@pytest.mark.parametrize("count", range(1, 7))
def test_orders_put_every_variant_in_every_place_equally_often(count):
    orders = rotating_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in zip(*orders, strict=True):
        assert set(Counter(place).values()) == {len(orders) // count}


@pytest.mark.parametrize("count", range(2, 7))
def test_every_variant_follows_every_other_equally_often(count):
    follows = Counter(pair for order in rotating_orders(count) for pair in pairwise(order))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) == 1


def test_rounds_are_interleaved_and_warm_up_is_not_kept():
    called = []

    def variant(name):
        def call():
            called.append(name)
            return len(called)

        return call

    names = ["a", "b", "c", "d"]
    paired = time_paired({name: variant(name) for name in names}, rounds=4, warm_up=2, pause_s=0)
    rounds = [called[start : start + 4] for start in range(0, len(called), 4)]
    orders = rotating_orders(4)
    expected = [[names[place] for place in orders[turn % 4]] for turn in range(6)]
    assert rounds == expected
    assert {name: len(times) for name, times in paired.times_ms.items()} == dict.fromkeys(names, 4)
    assert sorted(paired.results.values()) == [21, 22, 23, 24]  # of the last round
    assert gc.isenabled()


def test_a_variant_settles_before_each_of_its_timed_calls():
    called = []
    calls = {name: (lambda name=name: called.append(name)) for name in "ab"}
    paired = time_paired(calls, rounds=3, warm_up=1, settle=2, pause_s=0)
    assert [called[first : first + 3] for first in range(0, 24, 3)] == [
        [name] * 3 for name in called[::3]
    ]
    assert {name: len(times) for name, times in paired.times_ms.items()} == {"a": 3, "b": 3}


def test_a_failing_variant_leaves_garbage_collection_on():
    def fail():
        raise ValueError("broken variant")

    with pytest.raises(ValueError, match="broken variant"):
        time_paired({"a": fail}, rounds=1, pause_s=0)
    assert gc.isenabled()


def test_speedup_is_the_median_of_the_rounds_own_ratios():
    paired = Paired({"slow": [10.0, 100.0, 30.0], "fast": [5.0, 10.0, 10.0]}, {})
    assert paired.speedup("fast", over="slow").median == 3.0  # medians alone would say 3.0 as well
    assert paired.speedup("slow", over="slow") == Spread(1, 1, 1)
    noisy = Paired({"slow": [10.0, 100.0, 30.0], "fast": [10.0, 100.0, 1.0]}, {})
    assert noisy.speedup("fast", over="slow").median == 1.0


def test_spread_of_known_values():
    spread = Spread.of(list(range(11)))
    assert (spread.p10, spread.median, spread.p90) == pytest.approx((1, 5, 9))


def test_calls_take_turns_and_their_results_are_kept_by_round():
    called = []
    calls = {name: (lambda name=name: called.append(name) or len(called)) for name in "ab"}
    assert in_turn(calls, 2) == {"a": [1, 4], "b": [2, 3]}
    assert called == ["a", "b", "b", "a"]
