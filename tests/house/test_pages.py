"""The pages that people read: a README that is short, prose in lines of 100, folders as they are."""

import ast
import re
from dataclasses import fields

import pytest

from dgl_runtime.bundle.manifest import Manifest
from tests import ROOT
from tests.house.test_links import PAGES
from tests.house.test_structure import FLOORS

WIDTH = 100


def prose(text):
    """Its lines with their numbers, without code, tables, comments and pictures, which cannot be wrapped."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        is_fence = line.lstrip().startswith("```")
        is_code ^= is_fence
        if not is_code and not is_fence and not line.startswith(("|", "![", "<img", "<!--")):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped(page):
    lines = prose(page.read_text("utf-8"))
    assert [number for number, line in lines if len(line) > WIDTH and " " in line.strip()] == []


def test_the_readme_is_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 110


def test_the_table_of_folders_says_what_the_folders_say():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    folders = [ROOT / package / name for package, floors in FLOORS.items() for name in floors]
    inits = [init for folder in folders for init in sorted(folder.rglob("__init__.py"))]
    said = {
        str(init.parent.relative_to(ROOT)): ast.get_docstring(ast.parse(init.read_text("utf-8")))
        for init in inits
    }
    rows = re.findall(r"^\| `(dgl_\w+/[\w/]+)` \| (.+) \|$", text, re.MULTILINE)
    assert rows == list(said.items())


def test_the_table_of_the_manifest_names_fields_that_it_has():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    _, _, table = text.partition("| field of the manifest | holds |\n|---|---|\n")
    rows = table.partition("\n\n")[0].splitlines()
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert named
    assert set(named) - {field.name for field in fields(Manifest)} == set()
