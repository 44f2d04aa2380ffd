"""Times as people write them, and as the commands print them."""

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.commands.options import Seconds
from dgl_runtime.times import read_seconds, timestamp


@pytest.mark.parametrize(
    ("text", "seconds"),
    {
        "90": 90, "90s": 90, " 90 s ": 90, "1.5m": 90, "1.5min": 90, "1m30s": 90, "1 m 30 s": 90, "90S": 90,
        "1:30": 90, "01:30": 90, "0:01:30": 90, "1:30.0": 90, "1h30m": 5400, "1H30M": 5400, "1.5h": 5400,
        "1:30:00": 5400, "90:00": 5400, "500ms": 0.5, "0.5": 0.5, ".5": 0.5, "5.": 5, "0:00.5": 0.5,
        "1s500ms": 1.5, "1h1ms": 3600.001, "1:02:03.25": 3723.25, "0": 0, "0s": 0, "0:00": 0, "0:00:00.0": 0,
        "1e-05": 1e-05, "100:00:00": 360_000, "1:5": 65,
    }.items(),
)  # fmt: skip
def test_times_are_read_in_every_form(text, seconds):
    assert read_seconds(text) == pytest.approx(seconds, rel=1e-12)
    assert Seconds(may_be_0=True)(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    "|-1|+1|-0|s|1:|:30|1:60|1:60:00|1:2:3:4|1:30m|30m1h|1m1min|1m1m|1h30|1,5|1.2.3|1:3.0.0|10x|1:301|nan|inf|1e999|"
    "٣|1:30:|0x10|1_000|1 30|m|.|1:3s|1..5s|1:1.5:00".split("|"),
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(
        ValueError, match=r"is not a time such as 90s, 1.5m, 1h30m, 500ms or 1:30\.$"
    ):
        read_seconds(text)
    with pytest.raises(click.BadParameter, match=r"is not a duration above 0 such as 90s, "):
        Seconds()(text)
    with pytest.raises(click.BadParameter, match=r"is not a time such as 90s, "):
        Seconds(may_be_0=True)(text)


@pytest.mark.parametrize("text", ["0", "0s", "0:00", "0ms", "0h0m"])
def test_a_length_is_not_0(text):
    with pytest.raises(click.BadParameter, match=r"is not a duration above 0"):
        Seconds()(text)


@given(st.floats(0, 1e6))
def test_what_is_printed_is_read_back(seconds):
    printed = timestamp(seconds)
    assert read_seconds(printed) == pytest.approx(seconds, abs=0.051)
    assert timestamp(read_seconds(printed)) == printed
    assert read_seconds(repr(seconds)) == seconds  # as JSON has it
