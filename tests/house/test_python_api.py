"""docs/python-api.md is what docs/make_python_api.py writes, and holds what is public."""

import importlib.util

import pytest

import dgl_runtime
from tests import ROOT


@pytest.fixture(scope="module")
def pages():
    path = ROOT / "docs/make_python_api.py"
    spec = importlib.util.spec_from_file_location("make_python_api", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say(pages):
    written = (ROOT / "docs/python-api.md").read_text(encoding="utf-8")
    assert written == pages.document(), "run: python docs/make_python_api.py > docs/python-api.md"


def test_the_page_holds_everything_public(pages):
    text = pages.document()
    for name in dgl_runtime.__all__:
        assert f"\n## {name}\n" in text or f"\n| `{name}` |" in text


def test_sections_of_a_docstring_become_lists(pages):
    docstring = (
        "Do it, see :meth:`other`.\n\nArgs:\n    a: One\n        thing.\n\nRaises:\n    E: No."
    )
    told = "Do it, see `other`.\n\nArgs:\n\n- `a`: One thing.\n\nRaises:\n\n- `E`: No."
    assert pages.described(docstring) == told
