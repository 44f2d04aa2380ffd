"""Paired timing: all variants in every round, so that a round's ratio sees one state of the machine."""

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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

    def spread_ms(self, variant: str) -> Spread:
        """A variant's times."""
        return Spread.of(self.times_ms[variant])

    def speedup(self, variant: str, over: str) -> Spread:
        """How many times faster than ``over``, from the ratio in each round."""
        return ratios(self.times_ms[over], self.times_ms[variant])


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio in each round; entry i of both belongs to round i."""
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])


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


def in_turn(
    calls: Mapping[str, Callable[[], Result]], rounds: int, label: str = "rounds"
) -> dict[str, list[Result]]:
    """Call each once a round, in rotating order; entry i of each list belongs to round i."""
    names, orders = list(calls), rotating_orders(len(calls))
    found: dict[str, list[Result]] = {name: [] for name in names}
    bar = tqdm(range(rounds), desc=label, file=sys.stderr, disable=None, leave=False)
    for turn in bar:
        for place in orders[turn % len(orders)]:
            found[names[place]].append(calls[names[place]]())
    return found


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
        pause_s: Rest before a variant's turn.
        label: What the progress bar on stderr says.
    """
    results: dict[str, Result] = {}

    def timed(name: str) -> Callable[[], float]:
        def call() -> float:
            time.sleep(pause_s)
            for _ in range(settle):
                variants[name]()
            started = time.perf_counter()
            results[name] = variants[name]()
            return 1000 * (time.perf_counter() - started)

        return call

    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        times_ms = in_turn({name: timed(name) for name in variants}, warm_up + rounds, label)
    finally:
        if collects:
            gc.enable()
    return Paired({name: times[warm_up:] for name, times in times_ms.items()}, results)
