import json

import pytest
from benchmarks.report import Report, Table, spread_cells
from benchmarks.timing import Spread

from dgl_runtime.engines.machine import Machine

MACHINE = Machine("Some CPU 42", 2, 16.0, "Linux x86_64", "3.11.7", {"numpy": "2.0"})


def report(**data):
    table = Table("Times", ["what", "ms"], [["a query", "1.5"], ["clip", "120.0"]])
    return Report(
        "encode", "Latency", "2026-01-31", MACHINE, {"rounds": 2}, [table], ["A note."], data
    )


def test_table_is_aligned_markdown():
    assert report().tables[0].to_markdown().splitlines() == [
        "**Times**",
        "",
        "| what    |    ms |",
        "| ------- | ----: |",
        "| a query |   1.5 |",
        "| clip    | 120.0 |",
    ]


def test_markdown_and_json_are_named_after_machine_and_date(tmp_path):
    paths = report(raw=[1.5]).write(tmp_path / "new" / "folder")
    name = "encode-some-cpu-42-2026-01-31"
    assert [path.name for path in paths] == [f"{name}.json", f"{name}.md"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [f"{name}.json", f"{name}.md"]
    document = json.loads(paths[0].read_text())
    assert document["benchmark"] == "encode"
    assert document["settings"] == {"rounds": 2}
    assert document["machine"]["cpu"] == "Some CPU 42"
    assert document["raw"] == [1.5]
    text = paths[1].read_text()
    assert text.startswith("# Latency\n\n2026-01-31. Some CPU 42, 2 cores, 16 GB, Linux x86_64")
    assert text.endswith("- A note.\n")


def test_a_number_that_json_lacks_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        report(raw=float("nan")).write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_spread_cells():
    assert spread_cells(Spread(1.25, 1, 20), 1) == ["1.2", "1.0", "20.0"]
