"""Paired timing: all variants in every round, so that a round's ratio sees one state of the machine."""

import gc
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from tqdm import tqdm

Result = TypeVar("Result")
WARM_UP = 3
# Thread pools spin for some milliseconds after a call; the next variant must not share cores with that.
PAUSE_S = 0.02


@dataclass(frozen=True)
class Spread:
    """Median and the middle 80% of repeated measurements."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        p10, median, p90 = np.percentile(values, (10, 50, 90)).tolist()
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Paired(Generic[Result]):
    """What a run of rounds gave: entry i of every variant's times belongs to round i."""

    times_ms: dict[str, list[float]]
    results: dict[str, Result]  # of the last round, for an equality check after the timing

    def without(self, variants: Collection[str]) -> "Paired[Result]":
        """The same rounds without some variants."""
        times_ms = {name: kept for name, kept in self.times_ms.items() if name not in variants}
        results = {name: kept for name, kept in self.results.items() if name not in variants}
        return Paired(times_ms, results)

    def spread_ms(self, variant: str) -> Spread:
        """A variant's times."""
        return Spread.of(self.times_ms[variant])

    def speedup(self, variant: str, over: str) -> Spread:
        """How many times faster than ``over``, from the ratio in each round."""
        pairs = zip(self.times_ms[over], self.times_ms[variant], strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs])


def rotating_orders(count: int) -> list[tuple[int, ...]]:
    """Orders of ``count`` variants for successive rounds, balanced (a Williams design).

    Over one cycle every variant stands in every place equally often, and follows every other variant
    equally often: what one leaves behind in caches and thread pools is not always paid by the same.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (count - i // 2) % count for i in range(count)]
    orders = [tuple((place + turn) % count for place in zigzag) for turn in range(count)]
    if count % 2:
        orders += [order[::-1] for order in orders]
    return orders


def time_paired(
    variants: Mapping[str, Callable[[], Result]],
    *,
    rounds: int,
    warm_up: int = WARM_UP,
    settle: int = 0,
    pause_s: float = PAUSE_S,
    label: str = "rounds",
) -> Paired[Result]:
    """Run every variant once a round, in rotating order; the warm-up rounds are not kept.

    Args:
        variants: Name -> a call without arguments, which returns when its result is ready.
        rounds: Rounds to keep, at least 1.
        warm_up: Rounds before them.
        settle: Calls of a variant before each that is timed, so that its threads are awake and the caches
            are its own: what it takes when it works alone, one call after another.
        pause_s: Rest before a variant's turn, in seconds.
        label: What the progress bar on stderr says.
    """
    names = list(variants)
    orders = rotating_orders(len(names))
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Result] = {}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        bar = tqdm(range(warm_up + rounds), desc=label, file=sys.stderr, disable=None, leave=False)
        for turn in bar:
            for name in (names[place] for place in orders[turn % len(orders)]):
                time.sleep(pause_s)
                for _ in range(settle):
                    variants[name]()
                started = time.perf_counter()
                results[name] = variants[name]()
                elapsed = time.perf_counter() - started
                if turn >= warm_up:
                    times_ms[name].append(1000 * elapsed)
    finally:
        if collects:
            gc.enable()
    return Paired(times_ms, results)
