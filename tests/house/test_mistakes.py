"""What tests/mutate.py puts into a file: one mistake at a time, and none where nobody could notice."""

import tomllib

from tests import ROOT
from tests.mutation.mistakes import mistakes

SOURCE = '''"""Text < 3."""
__all__ = ["grow"]
def grow(value: "int < 3", wide: bool = True) -> int:
    """Text < 3."""
    if value < 3 and not wide:
        raise ValueError(f"{value} < 3")
    return round(value - 1, ndigits=2)
'''


def test_each_mistake_changes_one_place_and_compiles():
    found = [one.lines(SOURCE)[1] for one in mistakes(SOURCE)]
    assert len(found) == len(set(found))
    assert set(found) == {
        'def grow(value: "int < 3", wide: bool = False) -> int:',
        "if True:",
        "if False:",
        "if ((value < 3)):",
        "if ((not wide)):",
        "if value <= 3 and not wide:",
        "if value >= 3 and not wide:",
        "if value < 4 and not wide:",
        "if value < 3 or not wide:",
        "if value < 3 and (wide):",
        "pass",
        "return (round(value - 1, ndigits=2)) + 1",
        "return round(value, ndigits=2)",
        "return round(value + 1, ndigits=2)",
        "return round(value - 2, ndigits=2)",
        "return round(value - 1)",
        "return round(value - 1, ndigits=3)",
    }


def test_operators_in_sql_are_changed():
    source = 'rows = run("SELECT a FROM b WHERE a <= 1 AND c = 2 ORDER BY a DESC")\n'
    found = {one.lines(source)[1][21:-2] for one in mistakes(source) if one.kind == "sql"}
    assert found == {
        "FROM b WHERE a < 1 AND c = 2 ORDER BY a DESC",
        "FROM b WHERE a <= 1 AND c != 2 ORDER BY a DESC",
        "FROM b WHERE a <= 1 OR c = 2 ORDER BY a DESC",
        "FROM b WHERE a <= 1 AND c = 2 ORDER BY -a DESC",
        "FROM b WHERE a <= 1 AND c = 2 ORDER BY a",
    }


def test_each_mistake_that_nobody_can_see_is_of_a_line_that_is_there_and_has_a_reason():
    unseen = ROOT / "tests" / "mutation" / "unseen.toml"
    for module, entries in tomllib.loads(unseen.read_text(encoding="utf-8")).items():
        source = " ".join((ROOT / module).read_text(encoding="utf-8").split())
        for entry in entries:
            assert entry["reason"]
            assert entry["line"] in source, (module, entry)
            assert entry.get("becomes") != entry["line"]
