"""What dgl-eval found, as tables: raw figures, then each correction apart; mean and spread of runs."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dgl_runtime.metrics import RetrievalMetrics
from dgl_train.evaluate import Report
from dgl_train.post_process import Processed

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
    """How epochs were chosen: one line if all are alike, else one for each model."""
    lines = {one.selection for one in evaluations}
    if len(lines) == 1:
        return sorted(lines)
    return [f"{one.model}: {one.selection}" for one in evaluations]


def make_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """The raw figures, those of each correction, and the direction score where there is one."""
    reports = [(one.model, one.report) for one in evaluations]
    both = [(name, (r.text_to_video, r.video_to_text)) for name, r in reports]
    tables = [Table("similarity as it is", ("", *FIGURES.values(), "queries"), _rows(both))]
    for results in zip(*(one.processed for one in evaluations), strict=True):
        tables.append(_processed_table([one.model for one in evaluations], results))
    scores = [(n, r.direction_score) for n, r in reports if r.direction_score is not None]
    if scores:
        count = reports[0][1].direction_clips
        title = f"direction: % of {count} clips closer to their caption than to its reverse"
        names, numbers = [name for name, _ in scores], [(score,) for _, score in scores]
        tables.append(Table(title, ("", "direction"), _with_summary("clips", names, numbers)))
    return tables


def _processed_table(models: Sequence[str], results: Sequence[Processed]) -> Table:
    first = results[0]
    betas = dict.fromkeys(f"{one.beta:g}" for one in results)
    title = f"{first.method}, {first.uses}; beta {', '.join(betas)} chosen on {first.chosen_on}"
    named = [
        (model, (one.text_to_video, one.video_to_text))
        for model, one in zip(models, results, strict=True)
    ]
    return Table(title, ("", *FIGURES.values(), "queries"), _rows(named))


def _rows(
    named: Sequence[tuple[str, tuple[RetrievalMetrics, RetrievalMetrics | None]]],
) -> list[Row]:
    rows = []
    for place, way in enumerate(_WAYS):
        found = [(name, metrics) for name, both in named if (metrics := both[place]) is not None]
        if not found:
            continue
        numbers = [tuple(getattr(metrics, key) for key in FIGURES) for _, metrics in found]
        lines = _with_summary(way, [name for name, _ in found], numbers)
        count = str(found[0][1].num_queries)
        rows += [(*line, "" if line[0].endswith("spread") else count) for line in lines]
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
