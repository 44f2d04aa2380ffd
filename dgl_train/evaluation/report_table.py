"""What dgl-eval found, as tables: raw figures, then each correction apart; mean and spread of runs."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dgl_runtime.search.metrics import RetrievalMetrics
from dgl_train.evaluation.evaluate import Report
from dgl_train.evaluation.models import CHOSEN_ON_TEST
from dgl_train.evaluation.post_process import Processed

Row = tuple[str, ...]

FIGURES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}
_WAYS = ("text to video", "video to text")


@dataclass(frozen=True)
class Evaluation:
    """One model on one data set.

    Attributes:
        model: Its path.
        selection: How its epoch was chosen, one line.
        report: Raw figures.
        processed: Figures after each correction; may be empty.
    """

    model: str
    selection: str
    report: Report
    processed: Sequence[Processed] = ()

    def document(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "model": self.model,
            "selection": self.selection,
            **asdict(self.report),
            "post_processed": [asdict(one) for one in self.processed],
        }


@dataclass(frozen=True)
class Table:
    """A table for people: its title, names of columns, and cells; the first column is text."""

    title: str
    header: Row
    rows: Sequence[Row]

    def __str__(self) -> str:
        """The table in plain text."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *aligned])


def selection_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """How epochs were chosen: one line if all are alike, else one for each, test set first."""
    lines = {one.selection for one in evaluations}
    if len(lines) == 1:
        return sorted(lines)
    warned_first = sorted(evaluations, key=lambda one: one.selection != CHOSEN_ON_TEST)
    return [f"{one.model}: {one.selection}" for one in warned_first]


def make_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """The raw figures, those of each correction, and the direction score where there is one."""
    names = [one.model for one in evaluations]
    reports = [one.report for one in evaluations]
    raw = [
        ((one.text_to_video, one.video_to_text), _counts(one.text_to_video, one.video_to_text))
        for one in reports
    ]
    header = ("", *FIGURES.values())
    tables = [Table("similarity as it is", (*header, "queries"), _rows(names, raw))]
    for results in zip(*(one.processed for one in evaluations), strict=True):
        found = [((one.text_to_video, one.video_to_text), 2 * [f"{one.beta:g}"]) for one in results]
        title = f"{results[0].method}, {results[0].uses}; beta chosen on {results[0].chosen_on}"
        tables.append(Table(title, (*header, "beta"), _rows(names, found)))
    scores = [(one.direction_score,) for one in reports if one.direction_score is not None]
    if scores:
        count = reports[0].direction_clips
        title = f"order in time: % of {count} clips closer to their caption than to its reverse"
        tables.append(Table(title, ("", "%"), _with_summary("direction", names, scores)))
    return tables


def _counts(*ways: RetrievalMetrics) -> list[str]:
    return [str(way.num_queries) for way in ways]


def _rows(
    names: Sequence[str],
    found: Sequence[tuple[Sequence[RetrievalMetrics | None], Sequence[str]]],
) -> list[Row]:
    """Rows both ways, from each model's metrics and last cell for each way; None: no such rows."""
    rows = []
    for place, way in enumerate(_WAYS):
        present = [metrics for both, _ in found if (metrics := both[place]) is not None]
        if not present:
            continue
        numbers = [tuple(getattr(metrics, key) for key in FIGURES) for metrics in present]
        last = [*(cells[place] for _, cells in found), "", ""]  # none for mean and spread
        lines = _with_summary(way, names, numbers)
        rows += [(*line, cell) for line, cell in zip(lines, last, strict=False)]
    return rows


def _with_summary(
    label: str, names: Sequence[str], numbers: Sequence[tuple[float, ...]]
) -> list[Row]:
    """A row for each model; for several also their mean and sample standard deviation."""
    if len(numbers) == 1:
        return [(label, *_cells(numbers[0]))]
    mean, spread = zip(*map(mean_and_spread, zip(*numbers, strict=True)), strict=True)
    labelled = zip([*names, "mean", "spread"], [*numbers, mean, spread], strict=True)
    return [(f"{label}, {name}", *_cells(line)) for name, line in labelled]


def _cells(numbers: Sequence[float]) -> list[str]:
    return [f"{number:.1f}" for number in numbers]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of two values or more."""
    return statistics.mean(values), statistics.stdev(values)


def summarize_runs(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Mean and spread of the raw figures over several models, for JSON; None for one model."""
    if len(evaluations) == 1:
        return None
    summary: dict[str, Any] = {"mean": {}, "spread": {}}
    for way in ("text_to_video", "video_to_text"):
        found = [getattr(one.report, way) for one in evaluations]
        pairs = {key: mean_and_spread([getattr(m, key) for m in found]) for key in FIGURES}
        for place, name in enumerate(summary):
            summary[name][way] = {key: pair[place] for key, pair in pairs.items()}
    scores = [one.report.direction_score for one in evaluations]
    present = [score for score in scores if score is not None]
    if len(present) == len(scores):
        for name, value in zip(summary, mean_and_spread(present), strict=True):
            summary[name]["direction_score"] = value
    return summary
