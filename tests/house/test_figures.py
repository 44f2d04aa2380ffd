"""Every figure of README and docs has a source, and is what its report says."""

import importlib.util
import json
import sys

import pytest

from tests import ROOT


@pytest.fixture
def pages(monkeypatch):
    pytest.importorskip("psutil", reason="reports are rendered by dgl_bench")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "docs/make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["figures"]


@pytest.fixture
def bare(pages, monkeypatch):
    """The pages without the sentences and statements that ours have."""
    monkeypatch.setattr(pages, "passages", list)
    monkeypatch.setattr(pages, "STATED", [])
    return pages


def test_no_figure_is_stale_or_without_a_source(pages, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_figures.py", "--check"])
    code = pages.main()
    assert (capsys.readouterr().out.strip(), code) == ("", 0)


REPORT = {
    "is_quiet": True,
    "machine": {"cpu": "AMD EPYC (family 25)"},
    "tables": {
        "Times, ms": [
            {"way": "ours", "clip": "a", "ms": {"median": 1.26, "p10": 1.0, "p90": 2.0}},
            {"way": "theirs", "clip": "a", "ms": {"median": 3.0, "p10": 1.0, "p90": 4.0}},
            {"way": "ours", "clip": "b", "ms": {"median": 12.0, "p10": 1.0, "p90": 20.0}},
        ]
    },
}


@pytest.fixture
def results(bare, monkeypatch, tmp_path):
    """A folder of reports in place of ours, with one of two days."""
    figures = sys.modules["figures"]
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    for date, document in (("2026-01-01", {}), ("2026-01-02", REPORT)):
        (tmp_path / f"some-amd-epyc-{date}.json").write_text(json.dumps(document))
        (tmp_path / f"some-amd-epyc-{date}.md").touch()
    return tmp_path


BLOCK = (
    '<!-- figures: {"report": "some", "rows": "clip", "across": "way", "columns": {"ms": ""}} -->'
)


def test_a_table_is_written_from_the_newest_report(bare, results):
    old = "[report](benchmarks/results/some-amd-epyc-2026-01-01.md)"
    for before in (f"{BLOCK}\n\nAfter.\n", f"{BLOCK}\n\n| old |\n| --- |\n\nAfter {old}.\n"):
        text, faults = bare.renewed("README.md", before)
        assert text.startswith(
            f"{BLOCK}\n\n"
            "| clip | ours | theirs |\n"
            "| ---- | ---: | -----: |\n"
            "| a    | 1.26 |   3.00 |\n"
            "| b    | 12.0 |        |\n\nAfter"
        )
        assert not [fault for fault in faults if "no source" in fault]
        assert "2026-01-01" not in text
        assert [fault for fault in faults if "another machine, AMD EPYC" in fault]
        assert not bare.renewed("README.md", f"{text}\nOn an AMD EPYC.\n")[1]
        assert bare.renewed("README.md", text)[0] == text


@pytest.mark.parametrize(
    "figure", ["12 ms", "3.5x", "0.97", "10 to 20 %", "1,024 MB", "2 to 3 times"]
)
def test_a_figure_without_a_source_is_told(bare, figure):
    (told,) = bare.without_source("docs/new.md", f"One.\nIt takes {figure} here.\n")
    assert told.startswith("docs/new.md:2: no source: ")
    assert figure[-4:] in told


@pytest.mark.parametrize(
    "text",
    [
        "`12 ms`",
        "12 clips",
        "64 x 64",
        "[12 ms](x)".replace("12 ms", "it"),
        "Python 3.11",
        "v1.2.3",
    ],
)
def test_what_is_no_figure_needs_no_source(bare, text):
    assert not list(bare.without_source("docs/new.md", f"There: {text}.\n"))


def test_a_report_taken_beside_other_work_is_refused(bare, results):
    (results / "some-amd-epyc-2026-01-03.json").write_text(
        json.dumps({**REPORT, "is_quiet": False})
    )
    with pytest.raises(LookupError, match="other work"):
        bare.renewed("README.md", BLOCK + "\n")


def test_a_sentence_that_is_gone_is_told(bare):
    gone = sys.modules["figures"].Passage("docs/new.md", "takes {} ms and {} s.", ("1.0", "2"))
    assert bare.written("it takes 3.5 ms\n  and 7 s.", gone) == "it takes 1.0 ms\n  and 2 s."
    for text in ("nothing", "takes 1 ms and 2 s. takes 1 ms and 2 s."):
        with pytest.raises(LookupError, match="times there"):
            bare.written(text, gone)
