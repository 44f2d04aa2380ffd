"""The report of dgl-eval as files: report.json for programs, report.html for people.

The page stands alone: no request to anywhere, no script, light or dark as the reader's system is.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dgl_train.evaluation.report_table import (
    Evaluation,
    Table,
    make_tables,
    selection_lines,
    summarize_runs,
)
from dgl_train.evaluation.worst_queries import RankedClip, RankedQuery, WorstQuery

_PACKAGES = ("dgl-retrieval", "torch", "numpy", "av")
_RANGES = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, 500), (501, None))
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --ink: #1c1c1e; --quiet: #63636a; --rule: #d8d8dc; --bar: #2f6db5 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --ink: #ececf0; --quiet: #a2a2aa; --rule: #3a3a40; --bar: #6ea3e0 }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
.selection { font-weight: 600; border-left: 4px solid var(--bar); padding-left: .75rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1.5rem }
caption { text-align: left; color: var(--quiet); padding-bottom: .25rem }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--rule); text-align: right }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere }
figure { margin: 1.5rem 0 } figcaption, .quiet { color: var(--quiet); overflow-wrap: anywhere }
img { max-width: 100%; border: 1px solid var(--rule) }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 13px; text-anchor: middle }
svg rect { fill: var(--bar) }
"""


@dataclass(frozen=True)
class ModelPages:
    """One model's part of the report.

    Attributes:
        evaluation: Its figures.
        queries: Every caption with its rank.
        clips: Every clip with its rank.
        worst: The queries with the worst ranks.
    """

    evaluation: Evaluation
    queries: Sequence[RankedQuery]
    clips: Sequence[RankedClip]
    worst: Sequence[WorstQuery]


def write_report(out: Path, settings: Mapping[str, Any], models: Sequence[ModelPages]) -> None:
    """Write ``report.json`` and ``report.html``, each replaced in one step.

    Args:
        out: The folder; made if missing.
        settings: What the user asked for, by name; JSON values.
        models: One or more models on the same data.

    Raises:
        OSError: A file cannot be written.
    """
    versions = {name: version(name) for name in _PACKAGES}
    evaluations = [model.evaluation for model in models]
    document = {
        "selection": selection_lines(evaluations),
        "settings": dict(settings),
        "versions": versions,
        "models": [
            {
                **model.evaluation.document(),
                "queries": [asdict(query) for query in model.queries],
                "clips": [asdict(clip) for clip in model.clips],
            }
            for model in models
        ],
        "summary": summarize_runs(evaluations),
    }
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.json", json.dumps(document, indent=1) + "\n")
    _write(out / "report.html", make_page({**settings, **versions}, models))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)


def make_page(settings: Mapping[str, Any], models: Sequence[ModelPages]) -> str:
    """The page as HTML.

    Args:
        settings: What made the report, by name.
        models: One or more models on the same data.
    """
    evaluations = [model.evaluation for model in models]
    selection = "".join(
        f'<p class="selection">{escape(s)}</p>' for s in selection_lines(evaluations)
    )
    title = escape(f"Retrieval on {settings['dataset']}, {settings['split']}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"{selection}\n<h1>{title}</h1>\n"
        + "".join(map(_table, make_tables(evaluations)))
        + "".join(map(_model, models))
        + f"<h2>Settings</h2>\n{_table(_settings_table(settings))}</body></html>\n"
    )


def _settings_table(settings: Mapping[str, Any]) -> Table:
    rows = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in settings.items()
    ]
    return Table("what made this report", ("setting", "value"), rows)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def _model(model: ModelPages) -> str:
    worst = "".join(map(_figure, model.worst)) or "<p>Every caption found its clip first.</p>\n"
    return (
        f"<h2>{escape(model.evaluation.model)}</h2>\n"
        "<h3>Ranks of the captions' clips</h3>\n"
        f"{_histogram([query.rank for query in model.queries])}"
        f"<h3>The queries with the worst ranks</h3>\n{worst}"
    )


def _histogram(ranks: Sequence[int]) -> str:
    """How many ranks lie in each range, as bars with their counts."""
    counts = [
        (
            f"{low}" if low == high else f"{low}-{high}" if high else f"{low}+",
            sum(low <= rank and (high is None or rank <= high) for rank in ranks),
        )
        for low, high in _RANGES
    ]
    full = max(count for _, count in counts) or 1
    bars = []
    for place, (name, count) in enumerate(counts):
        left, height = 80 * place + 10, round(120 * count / full)
        bars.append(
            f'<rect x="{left}" y="{140 - height}" width="60" height="{height}"/>'
            f'<text x="{left + 30}" y="{134 - height}">{count}</text>'
            f'<text x="{left + 30}" y="158">{name}</text>'
        )
    width = 80 * len(counts)
    spoken = ", ".join(f"rank {name}: {count}" for name, count in counts)
    return (
        f'<svg viewBox="0 0 {width} 166" width="{width}" height="166" role="img" '
        f'aria-label="{spoken}">{"".join(bars)}</svg>\n'
    )


def _figure(worst: WorstQuery) -> str:
    query, data = worst.query, base64.b64encode(worst.picture).decode("ascii")
    about = f"rank {query.rank}: {query.caption}. Right clip {query.clip}; first {query.best_clip}"
    return (
        f'<figure><img alt="frames of the right clip and of those before it" '
        f'src="data:image/jpeg;base64,{data}">\n<figcaption>{escape(about)}</figcaption></figure>\n'
    )
