"""Results as rows, and the one renderer of them: tables and plots for people, JSON for programs."""

import datetime
import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dgl_bench.quiet import QUIET_CORES
from dgl_bench.timing import Spread
from dgl_runtime.engines.machine import Machine, describe_machine
from dgl_runtime.tables.markdown import markdown_table

PACKAGES = (
    *("dgl-retrieval", "numpy", "torch", "open_clip_torch", "onnx", "onnxruntime"),
    *("onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx_cu13"),
)
# A number has three digits that count, but in columns with one of these words.
_FORMS = {"cosine": ".5f", "recall": ".4f", "R@": ".1f", "off by": ".0e"}
# Okabe and Ito's colours without yellow, which is too pale for a line on white; the markers keep the
# lines apart in a printout without colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LOOKS = tuple(itertools.product(("-", "--", ":"), zip(_COLOURS, "osD^vPX", strict=True)))

Row = dict[str, Any]
"""Column -> a text, a number, a Spread, None for nothing; lists and mappings are raw: in the JSON alone."""


@dataclass(frozen=True)
class Table:
    """Rows of one kind; one that is not shown is for plots and programs."""

    title: str
    rows: Sequence[Row]
    is_shown: bool = True

    def to_markdown(self) -> str:
        """The columns that hold something and nothing raw; text comes first, on the left."""
        columns = {name: [row.get(name) for row in self.rows] for row in self.rows for name in row}
        shown = {
            name: values
            for name, values in columns.items()
            if any(one is not None for one in values)
            and not any(isinstance(one, list | dict) for one in values)
        }
        texts = [any(isinstance(one, str) for one in values) for values in shown.values()]
        rows = [[cell(name, row.get(name)) for name in shown] for row in self.rows]
        return markdown_table(self.title, list(shown), rows, [*texts, False].index(False))


@dataclass(frozen=True)
class Plot:
    """A line for each value of ``series``, through the points (x, y) of the rows that have both."""

    name: str  # of the file
    title: str
    x: str
    y: str
    series: str
    rows: Sequence[Row]
    log: str = ""  # "x" or "xy": equal steps of these axes are equal ratios

    def write(self, path: Path) -> None:
        """Draw a PNG; the same look everywhere, readable by the colour-blind."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            cells = (row.get(self.x), row.get(self.y))
            x, y = (one.median if isinstance(one, Spread) else one for one in cells)
            if x is not None and y is not None:
                lines.setdefault(row[self.series], []).append((x, y))
        for (name, points), (line, (colour, marker)) in zip(lines.items(), _LOOKS, strict=False):
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, linestyle=line, color=colour, marker=marker, label=name)
        axes.set(xlabel=self.x, ylabel=self.y)
        for which, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            if which in self.log:  # 0.5 and 200, not powers of ten
                axes.set(**{f"{which}scale": "log"})
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
        axes.set_title(self.title, loc="left", fontweight="bold")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        # under the lines, never over them
        figure.legend(loc="outside lower center", ncols=min(3, max(1, len(lines))), frameon=False)
        figure.savefig(path, format="png")


@dataclass(frozen=True)
class Report:
    """All that a benchmark has to say, but for the machine, the date and its options."""

    name: str
    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    plots: Sequence[Plot] = ()
    settings: Row = field(default_factory=dict)  # beside the options
    packages: Sequence[str] = ()  # whose versions matter, beside PACKAGES
    wrong: Sequence[str] = ()  # what was measured and gave wrong results
    is_timed: bool = True  # else other work on the machine changes nothing


@dataclass(frozen=True)
class Rendered:
    """A report of one day on one machine."""

    report: Report
    settings: Row
    date: str  # YYYY-MM-DD
    machine: Machine
    other_cores: float  # that worked for others during the run, on average

    @classmethod
    def of(cls, report: Report, options: Row, other_cores: float) -> "Rendered":
        """The report of today on this machine."""
        settings = {name: _shown(value) for name, value in {**options, **report.settings}.items()}
        machine = describe_machine((*PACKAGES, *report.packages))
        today = datetime.date.today().isoformat()
        return cls(report, settings, today, machine, round(other_cores, 2))

    @property
    def is_quiet(self) -> bool:
        """Whether the figures are the benchmark's own, and may be published."""
        return not self.report.is_timed or self.other_cores <= QUIET_CORES

    def _others(self) -> list[str]:
        busy = f"{self.other_cores:.2f} of {self.machine.cores} cores"
        return [f"Other work kept {busy} busy meanwhile."] if self.report.is_timed else []

    def to_markdown(self, plots: Sequence[str] = ()) -> str:
        """The whole report for people."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        parts = [
            f"# {self.report.title}",
            *([] if self.is_quiet else [f"**Not to be published: {self._others()[0]}**"]),
            f"{self.date}. {self.machine.describe()}.",
            *([f"Settings: {settings}."] if settings else []),
            *(table.to_markdown() for table in self.report.tables if table.is_shown and table.rows),
            "\n".join(f"- {note}" for note in (*self.report.notes, *self._others(), *plots)),
        ]
        return "\n\n".join(parts) + "\n"

    def document(self, *, raw: bool) -> Row:
        """The report for programs; without what is raw it is short."""

        def plain(row: Row) -> Row:
            kept = [name for name in row if raw or not isinstance(row[name], list | dict)]
            spreads = {name: asdict(row[name]) for name in kept if isinstance(row[name], Spread)}
            return {name: row[name] for name in kept} | spreads

        return {
            "benchmark": self.report.name,
            "date": self.date,
            "machine": asdict(self.machine),
            "other_cores": self.other_cores,
            "is_quiet": self.is_quiet,
            "is_timed": self.report.is_timed,
            "settings": self.settings,
            "tables": {one.title: [plain(row) for row in one.rows] for one in self.report.tables},
            "notes": list(self.report.notes) if raw else [],
        }

    def write(self, folder: Path) -> tuple[str, list[Path]]:
        """Write NAME-MACHINE-DATE.json and .md, and the plots; those of the same day are replaced."""
        stem, name = f"{self.machine.slug}-{self.date}", self.report.name
        text = json.dumps(self.document(raw=True), indent=1, allow_nan=False) + "\n"
        pictures = {folder / f"{name}-{one.name}-{stem}.png": one for one in self.report.plots}
        links = [f"![{one.title}]({path.name})" for path, one in pictures.items()]
        try:
            for path, plot in pictures.items():
                plot.write(path)
        except ModuleNotFoundError as error:
            links = [f"No plots: {error.name} is missing: pip install 'dgl-retrieval[bench]'."]
            pictures = {}
        markdown = self.to_markdown(links)
        texts = {folder / f"{name}-{stem}.json": text, folder / f"{name}-{stem}.md": markdown}
        for path, content in texts.items():
            _write(path, content)
        return markdown, [*texts, *pictures]


def cell(column: str, value: object) -> str:
    """A value as people read it."""
    match value:
        case None:
            return ""
        case Spread():
            low, high = cell(column, value.p10), cell(column, value.p90)
            return f"{cell(column, value.median)} ({low} to {high})"
        case int():
            return f"{value:,}"
        case float():
            form = next((form for word, form in _FORMS.items() if word in column), None)
            return format(value, form) if form else _three_digits(value)
    return str(value)


def _three_digits(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if decimals < 6 else f"{value:.0e}"


def _shown(value: object) -> object:
    """An option without paths: results are published."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, Path) or (isinstance(value, str) and value and Path(value).exists()):
        return Path(value).name
    return "-" if value in ("", None) else value


def _write(path: Path, text: str) -> None:
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.write_text(text, encoding="utf-8")
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean, and sample standard deviation where there are two or more."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
