"""Every command has help with an example and stands in docs/commands.md; needs all packages."""

import importlib.util
import re

import pytest

from tests import ROOT

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
