"""Write every measured figure into README and docs from its report: python docs/make_figures.py.

A table names its report in a comment above it::

    <!-- figures: {"report": "encode-2-threads", "table": "Queries", "rows": "variant", "columns": ["ms"]} -->

``figures.py`` holds the figures in sentences, and the source of those that no report of ours measured. With
``--check`` nothing is written: what is stale, and each figure without a source, is printed; exit code 1.
"""

import json
import re
import string
import sys
from collections.abc import Iterator

import click
from figures import (
    MACHINES,
    ROOT,
    STATED,
    Passage,
    Row,
    Stated,
    machine_of,
    newest,
    passages,
    report,
)

from dgl_bench.report import cell
from dgl_bench.timing import Spread
from dgl_runtime.tables.markdown import markdown_table

GENERATED = ("docs/commands.md", "docs/python-api.md")  # from the code itself
_BLOCK = re.compile(r"<!-- figures: (\{.*?\}) -->\n(?:\n(?:\|.*\n)+)?")
_LINK = re.compile(
    rf"(?<=benchmarks/results/)([a-z0-9-]+?)-(?:{'|'.join(MACHINES)})-[0-9-]{{10}}\.(md|png)"
)
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_UNIT = r"(?:[mu]?s|min|minutes|hours?|seconds|x|times|%|[kMGT]B|points|G(?:FL)?OP(?:/s)?)"
_FIGURE = re.compile(
    rf"(?<![\w.,/#-]){_NUMBER}(?:(?: to | and | or | against |, ){_NUMBER})*\s?{_UNIT}(?!\w| \d)"
    r"|(?<![\w.,/#-])(?<!Python )\d+(?:,\d{3})*\.\d+(?![\w.])"
)
_NO_FIGURE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)


def table(wanted: Row) -> str:
    """A table of a report as Markdown.

    ``report`` and ``table`` name it (the beginning of its title); of several reports the rows follow one
    another. ``where`` chooses rows by their values,
    ``columns`` are shown, perhaps with another heading. With ``across`` each value of that column gets columns
    of its own, and ``rows`` is what a line begins with.
    """
    held = [row for name in _reports(wanted) for row in _rows(name, wanted.get("table", ""))]
    where = {
        key: one if isinstance(one, list) else [one] for key, one in wanted.get("where", {}).items()
    }
    chosen = [row for row in held if all(row.get(key) in ones for key, ones in where.items())]
    columns = wanted["columns"]
    headings = columns if isinstance(columns, dict) else {one: one for one in columns}
    if across := wanted.get("across"):
        chosen, headings = _spread_out(chosen, wanted["rows"], across, headings)
    lines = [[_shown(name, row.get(name)) for name in headings] for row in chosen]
    texts = [any(isinstance(row.get(name), str) for row in chosen) for name in headings]
    return markdown_table("", [*headings.values()], lines, [*texts, False].index(False)).lstrip(
        "*\n"
    )


def _reports(wanted: Row) -> list[str]:
    names = wanted["report"]
    return [names] if isinstance(names, str) else names


def _rows(name: str, title: str) -> list[Row]:
    return next(rows for of, rows in report(name).items() if of.startswith(title))


def _spread_out(held: list[Row], label: str, across: str, columns: Row) -> tuple[list[Row], Row]:
    """One row a value of ``label``, with the columns of each value of ``across`` side by side."""
    found: dict[str, Row] = {}
    headings: Row = {label: label}
    for row in held:
        for column, heading in columns.items():
            name = f"{row[across]}, {heading}" if heading else row[across]
            headings[name] = name
            found.setdefault(row[label], {label: row[label]})[name] = row.get(column)
    return list(found.values()), headings


def _shown(column: str, held: object) -> str:
    if isinstance(held, dict):
        held = Spread(**held).median
    return cell(column, held)


def pattern(passage: Passage | Stated) -> re.Pattern[str]:
    """The passage in any line breaks, with any figures; a field is a group."""
    parts = []
    for literal, field, _, _ in string.Formatter().parse(passage.text):
        parts.append(r"\s+".join(re.escape(word) for word in re.split(r"\s+", literal)))
        parts += [] if field is None else [r"(\S+?)"]
    return re.compile("".join(parts) + r"(?![\w])")


def _places(text: str, known: Passage | Stated) -> Iterator[tuple[int, int]]:
    """Where a text stands; a heading, with its section."""
    for match in pattern(known).finditer(text):
        ends = len(text) if known.text.startswith("#") else match.end()
        following = text.find("\n## ", match.end()) if ends > match.end() else -1
        yield match.start(), following if following >= 0 else ends


def written(text: str, passage: Passage | Stated) -> str:
    """A document with the passage's figures as they are now.

    Raises:
        LookupError: The document does not hold the passage just once.
    """
    found = list(pattern(passage).finditer(text))
    if len(found) != 1:
        raise LookupError(f"{passage.document}: {len(found)} times there: {passage.text!r}")
    for place, one in reversed([*enumerate(passage.values, 1)]):
        start, end = found[0].span(place)
        text = text[:start] + one + text[end:]
    return text


def without_source(document: str, text: str) -> Iterator[str]:
    """Lines with a figure that no table, passage or statement covers."""
    known = [one for one in (*passages(), *STATED) if one.document == document]
    covered = [span for one in known for span in _places(text, one)]
    covered += [match.span() for form in (_NO_FIGURE, _BLOCK) for match in form.finditer(text)]
    for figure in _FIGURE.finditer(text):
        if not any(start <= figure.start() < end for start, end in covered):
            line = text.count("\n", 0, figure.start())
            yield f"{document}:{line + 1}: no source: {figure[0]!r} in {text.splitlines()[line]!r}"


def renewed(document: str, text: str) -> tuple[str, list[str]]:
    """A document with today's figures and links to the newest reports; and what is wrong in it."""
    faults = []
    text = _BLOCK.sub(lambda at: f"<!-- figures: {at[1]} -->\n\n{table(json.loads(at[1]))}\n", text)
    names = [name for at in _BLOCK.finditer(text) for name in _reports(json.loads(at[1]))]
    for name in names:
        if (machine := machine_of(name)) not in text:
            faults.append(
                f"{document}: {name} is of another machine, {machine}, which is not named"
            )
    text = _LINK.sub(lambda link: newest(link[1], link[2]).name, text)
    for passage in (one for one in (*passages(), *STATED) if one.document == document):
        try:
            text = written(text, passage)
        except LookupError as error:
            faults.append(str(error))
    return text, [*faults, *without_source(document, text)]


def main() -> int:
    """Write, or with ``--check`` tell."""
    faults = []
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in pages:
        document = path.relative_to(ROOT).as_posix()
        if document in GENERATED:
            continue
        before = path.read_text(encoding="utf-8")
        text, wrong = renewed(document, before)
        faults += wrong
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif text != before:
            faults.append(f"{document} is stale. Run: python docs/make_figures.py")
    for fault in faults:
        click.echo(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
