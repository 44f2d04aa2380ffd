"""Files a newcomer can read: none too long, each with a first line that says what it is for."""

import ast
import subprocess

import pytest

from tests import ROOT

PACKAGES = ("dgl_runtime", "dgl_train", "dgl_export", "benchmarks")


def sources():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


def test_no_test_file_is_above_400_lines():
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_nothing_large_is_committed():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in listed.strip("\0").split("\0"):
        path = ROOT / name
        assert not path.exists() or path.stat().st_size < 2_000_000, name
