"""Rows in, one form out: tables and plots for people, JSON for programs, and a command of a function."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from click.testing import CliRunner

import dgl_bench.command
from dgl_bench.command import benchmark
from dgl_bench.quiet import OtherWork, busy_cores
from dgl_bench.report import Plot, Rendered, Report, Table, cell
from dgl_bench.timing import Spread
from dgl_runtime.engines.machine import Machine

MACHINE = Machine("Some CPU 42", 2, 16.0, "Linux x86_64", "3.11.7", {"numpy": "2.0"})
ROWS = [
    {"what": "a query", "ms": Spread(1.5, 1.0, 20.0), "nothing": None, "times_ms": [1.5], "x": 1},
    {"what": "clip", "ms": Spread(120.0, 119.6, 130.0), "x": 2000},
]


def rendered(*rows, other_cores=0.02, **more):
    report = Report("encode", "Latency", [Table("Times", rows or ROWS)], ["A note."], **more)
    return Rendered(report, {"rounds": 2}, "2026-01-31", MACHINE, other_cores)


def test_a_table_shows_what_is_not_raw_and_not_empty():
    assert rendered().report.tables[0].to_markdown().splitlines() == [
        "**Times**",
        "",
        f"| what    | {'ms':>19} |     x |",
        f"| ------- | {'-' * 18}: | ----: |",
        "| a query | 1.50 (1.00 to 20.0) |     1 |",
        f"| clip    | {'120 (120 to 130)':>19} | 2,000 |",
    ]


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("ms", 1234.5, "1,234"),
        ("ms", 12.345, "12.3"),
        ("ms", 0.012345, "0.0123"),
        ("off by", 2.5e-7, "2e-07"),
        ("MB", 2.5e-7, "2e-07"),
        ("cosine", 0.999531, "0.99953"),
        ("recall texts", 1.0, "1.0000"),
        ("R@1", 23.04, "23.0"),
        ("ms", 0.0, "0"),
        ("ms", float("nan"), "nan"),
        ("clips", 10_000, "10,000"),
        ("remark", None, ""),
    ],
)
def test_numbers_have_three_digits_that_count(column, value, text):
    assert cell(column, value) == text


def test_files_are_named_after_machine_and_date_and_hold_all(tmp_path):
    markdown, files = rendered().write(tmp_path)
    name = "encode-some-cpu-42-2026-01-31"
    assert [path.name for path in files] == [f"{name}.json", f"{name}.md"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    document = json.loads(files[0].read_text())
    assert document["machine"]["cpu"] == "Some CPU 42"
    assert (document["other_cores"], document["is_quiet"]) == (0.02, True)
    assert document["tables"]["Times"][0] == {
        **ROWS[0], "ms": {"median": 1.5, "p10": 1.0, "p90": 20.0}
    }  # fmt: skip
    assert files[1].read_text() == markdown
    assert markdown.startswith("# Latency\n\n2026-01-31. Some CPU 42, 2 cores, 16 GB, Linux x86_64")
    assert "- A note.\n- Other work kept 0.02 of 2 cores busy meanwhile.\n" in markdown
    assert "Not to be published" not in markdown


def test_a_report_taken_beside_other_work_is_marked():
    loud = rendered(other_cores=0.31)
    assert not loud.document(raw=False)["is_quiet"]
    mark = "**Not to be published: Other work kept 0.31 of 2 cores busy meanwhile.**"
    assert loud.to_markdown().split("\n\n")[1] == mark


def test_what_is_not_timed_may_be_taken_beside_other_work():
    busy = replace(rendered(other_cores=1.9, is_timed=False), settings={})
    assert busy.document(raw=False)["is_quiet"]
    text = busy.to_markdown()
    assert "Other work" not in text
    assert "Settings" not in text


def test_work_of_others_is_told_from_our_own():
    def spin(seconds):
        return [sys.executable, "-c", f"import time\nwhile time.process_time() < {seconds}: 0"]

    work = OtherWork()
    subprocess.run(spin(0.5), check=True)
    quiet = work.cores()
    other = subprocess.Popen(spin(60))
    try:  # a child that has not ended is none of ours yet
        loud = busy_cores()
    finally:
        other.kill()
        other.wait()
    assert loud > quiet + 0.3


def test_the_short_document_has_nothing_raw():
    short = rendered().document(raw=False)
    assert "times_ms" not in short["tables"]["Times"][0]
    assert short["tables"]["Times"][0]["ms"]["median"] == 1.5


def test_a_number_that_json_lacks_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        rendered({"ms": float("nan")}).write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_plots_are_drawn_from_rows_or_said_to_be_missing(tmp_path, monkeypatch):
    some = rendered(plots=[Plot("speed", "Speed", "x", "ms", "what", ROWS, "xy")])
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        markdown, files = some.write(tmp_path)
        assert "- No plots: matplotlib.figure is missing: pip install" in markdown
        assert len(files) == 2
    pytest.importorskip("matplotlib")
    markdown, files = some.write(tmp_path)
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert markdown.endswith(f"- ![Speed]({files[2].name})\n")


# ---- a command of a function ------------------------------------------------------------------


@benchmark
def measure(
    bundle: Path,
    sizes: Annotated[tuple[int, ...], "Some sizes."] = (1, 20),
    rounds: int = 3,
    seed: int = 0,
    mode: Literal["a", "b"] = "a",
    quick: bool = False,
) -> Report:
    """Measure.

    Example: measure bundle
    """
    given = {"sizes": sum(sizes), "rounds": rounds, "seed": seed, "mode": mode, "quick": quick}
    wrong = ["it is off"] if mode == "b" else []
    return Report("m", "M", [Table("T", [given])], [], settings={"also": 1}, wrong=wrong)


def test_the_signature_is_the_command_line(tmp_path):
    said = CliRunner().invoke(measure, ["--help"]).output
    assert "[OPTIONS] BUNDLE" in said
    assert "Some sizes.  [default: 1,20]" in said
    options = [tmp_path / "secret" / "bundle", "--sizes", "3,4", "--quick", "--out", tmp_path / "o"]
    result = CliRunner().invoke(measure, [*map(str, options)])
    assert result.exit_code == 0, result.output
    *_, last = result.stdout.splitlines()
    document = json.loads(last)
    row = {"sizes": 7, "rounds": 3, "seed": 0, "mode": "a", "quick": True}
    assert document["tables"] == {"T": [row]}
    assert document["settings"]["bundle"] == "bundle"  # a folder's path is nobody's business
    assert document["settings"] | {"sizes": "3 4", "also": 1} == document["settings"]
    assert all("secret" not in path.read_text() for path in (tmp_path / "o").iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sizes", "0"),
        ("sizes", "1,x"),
        ("sizes", ""),
        ("rounds", "0"),
        ("seed", "-1"),
        ("mode", "c"),
    ],
)
def test_what_does_not_fit_is_wrong_usage(option, value):
    result = CliRunner().invoke(measure, ["bundle", f"--{option}", value])
    assert (result.exit_code, f"--{option}" in result.output) == (2, True)


def test_what_is_wrong_is_written_and_ends_in_exit_code_1(tmp_path):
    result = CliRunner().invoke(measure, ["b", "--mode", "b", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: it is off\n")
    assert len(list(tmp_path.iterdir())) == 2


def test_results_lie_in_the_checkout_or_in_the_current_folder(tmp_path, monkeypatch):
    assert dgl_bench.command.results_folder().parts[-2:] == ("benchmarks", "results")
    monkeypatch.setattr(dgl_bench.command, "_FOLDER", tmp_path)
    assert dgl_bench.command.results_folder() == Path()
