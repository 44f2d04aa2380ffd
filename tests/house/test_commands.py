"""Every command has help with an example and stands in docs/commands.md; needs all packages."""

import importlib.util
import re
import shlex

import pytest

from tests import ROOT
from tests.house.test_links import PAGES

pytest.importorskip("open_clip", reason="the commands of dgl_train need it")


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs/make_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_has_help_with_an_example_of_itself(pages):
    for name, command in pages.commands().items():
        assert command.help, name
        assert "Example:" in command.help, name
        assert re.search(rf"Example:\s+(\S+ )*?{name} ", command.help), name


def test_the_documentation_is_the_help(pages):
    written = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert written == pages.document(), "run: python docs/make_commands.py > docs/commands.md"


def written_commands(text):
    """Commands that a page tells to type: in blocks of code, and between backticks."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(r"dgl-(?!linear|transformer|retrieval)", line)
    ]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("commands.md", "decisions.md")],
    ids=lambda page: page.name,
)
def test_commands_and_options_that_a_page_names_exist(pages, page):
    known = pages.commands()
    for name, *words in written_commands(page.read_text(encoding="utf-8")):
        named = (known.get(" ".join([name, *words[:count]])) for count in range(3))
        command = next((one for one in named if one is not None), None)
        if command is None:
            assert not words, (name, words)
            assert any(one.startswith(f"{name} ") for one in known), name
            continue
        options = {one for parameter in command.params for one in parameter.opts}
        options |= {one for parameter in command.params for one in parameter.secondary_opts}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used - options - {"--help"} == set(), (name, words)
