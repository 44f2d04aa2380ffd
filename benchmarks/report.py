"""A benchmark's result: the same tables on stdout and in markdown, every raw number in JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread
from dgl_runtime.engines.machine import Machine
from dgl_runtime.tables.markdown import markdown_table


@dataclass(frozen=True)
class Table:
    """A table for people; the first ``text_columns`` columns are text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    def to_markdown(self) -> str:
        """Markdown that is aligned, so that it also reads well in a terminal."""
        return markdown_table(self.title, self.columns, self.rows, self.text_columns)


@dataclass(frozen=True)
class Report:
    """All that a run of ``dgl-bench NAME`` has to say."""

    name: str
    title: str
    date: str  # YYYY-MM-DD
    machine: Machine
    settings: dict[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]
    data: dict[str, Any]  # raw measurements, JSON types only

    def to_markdown(self) -> str:
        """The whole report for people."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        parts = [
            f"# {self.title}",
            f"{self.date}. {self.machine.describe()}.",
            f"Settings: {settings}.",
            *(table.to_markdown() for table in self.tables),
            "\n".join(f"- {note}" for note in self.notes),
        ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """The whole report for programs."""
        document = {
            "benchmark": self.name,
            "date": self.date,
            "machine": asdict(self.machine),
            "settings": self.settings,
            **self.data,
            "notes": list(self.notes),
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``NAME-MACHINE-DATE.json`` and ``.md``; a report of the same day is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = {".json": self.to_json(), ".md": self.to_markdown()}
        written = []
        for suffix, text in texts.items():
            path = folder / f"{self.name}-{self.machine.slug}-{self.date}{suffix}"
            making = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                making.write_text(text, encoding="utf-8")
                making.replace(path)
            finally:
                making.unlink(missing_ok=True)
            written.append(path)
        return written[0], written[1]


def spread_cells(spread: Spread, digits: int) -> list[str]:
    """Median, p10 and p90 as cells of a table."""
    return [f"{value:.{digits}f}" for value in (spread.median, spread.p10, spread.p90)]


def with_threads(name: str, threads: int) -> str:
    """A report's name where the number of threads is part of the question."""
    return f"{name}-1-thread" if threads == 1 else f"{name}-{threads}-threads"
