"""Links between the project's pages lead somewhere."""

import re

import pytest

from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def targets(page):
    """Files and headings that a page links to, outside of the web: ``docs/export.md``, ``speed``."""
    for target in re.findall(r"\]\(([^)\s]+)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            name, _, heading = target.partition("#")
            yield (page.parent / name if name else page), heading


def headings(page):
    """The names by which GitHub links to a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    assert [str(file) for file, _ in targets(page) if not file.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page):
    named = [(file, heading) for file, heading in targets(page) if heading]
    assert [f"{file}#{heading}" for file, heading in named if heading not in headings(file)] == []
