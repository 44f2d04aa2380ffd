"""docs/export.md says what the code does: bounds, defaults, formats."""

import re

import click
import pytest
from click.testing import CliRunner

from dgl_export import lower_precision, quality
from dgl_export.calibration import FEWEST
from dgl_export.cli import export
from dgl_export.formats import WRITTEN
from dgl_export.parity import MAX_ABS
from dgl_export.request import DEFAULT_FRAMES
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.bundle.manifest import MIN_COSINE, PRECISIONS
from dgl_runtime.encoder.rebuild import CAPTION_BATCH, CLIP_BATCH, caption_profiles
from dgl_runtime.engines.tensorrt_library import OLDEST
from tests import ROOT

TEXT = (ROOT / "docs/export.md").read_text(encoding="utf-8")
PLAIN = " ".join(TEXT.split())


def row_of(first_cell):
    """The other cells of the only table row that begins so."""
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| {first_cell}")]
    return [cell.strip() for cell in row[1:].strip("|").split("|")][1:]


def numbers(pattern):
    """The numbers in the one place of the text that a pattern finds."""
    (found,) = re.findall(pattern, PLAIN)
    return [float(number) for number in (found if isinstance(found, tuple) else (found,))]


@pytest.fixture(scope="module")
def columns():
    """Precision -> its column of the table of bounds."""
    header = row_of("| fp16")
    columns = {name: at for at, cell in enumerate(header) for name in cell.split(", ")}
    assert columns.keys() == set(PRECISIONS) - {"fp32"}
    return columns


def test_bounds_by_precision(columns):
    cosines = row_of("smallest cosine")
    agreeing = row_of("captions with the same first clip")
    for precision, column in columns.items():
        assert float(cosines[column]) == MIN_COSINE[precision]
        assert agreeing[column] == f"{quality.MIN_TOP1[precision]:.0%}".replace("%", " %")


def test_float32_equals_the_trained_model_to_rounding():
    assert numbers(r"to rounding \(([\de.-]+) in any number\)") == [MAX_ABS]


def test_what_counts_as_equal_and_what_is_forgiven():
    assert numbers(r"same first clip \(or one ([\d.]+) from it\)") == [quality.TIE]
    points, fewer = numbers(r"\| (\d+) point, or two captions \(of fewer than (\d+): one\)")
    assert (points, fewer) == (quality.MAX_RECALL_LOSS, quality.FORGIVEN_FROM)
    assert quality.FORGIVEN == 2


def test_layers_that_are_kept():
    *counts, percent = numbers(r"in float32, (\d), (\d), (\d) \.\.\. of them up to (\d+) %")
    assert counts == [2, 4, 8]
    assert percent == 100 * lower_precision.MOST_KEPT


def test_formats_and_precisions():
    for form, precisions in WRITTEN.items():
        cells = row_of(f"`{form}`")
        if cells[0] != "the same":
            assert cells[0].split(", but ")[0].split(", ") == list(precisions)


def test_defaults_of_a_backbone_alone():
    assert numbers(r"reads (\d+) frames of a clip and") == [DEFAULT_FRAMES]
    help_of = {option.name: option.help for option in export.params}
    assert help_of["num_frames"].endswith(f"default as trained, or {DEFAULT_FRAMES}.")
    assert help_of["max_tokens"].endswith("default as trained, or all that the backbone reads.")


def test_limits_of_what_may_be_given():
    (words,) = [option for option in export.params if option.name == "max_tokens"]
    assert isinstance(words.type, click.IntRange)
    assert numbers(r"from (\d+) to what the backbone reads with `--max-tokens`") == [words.type.min]
    assert words.type.max is None  # the writer asks the backbone
    assert numbers(r"At least (\d+) clips are needed") == [FEWEST]


@pytest.mark.parametrize(("option", "least"), [("--num-frames", 1), ("--max-tokens", 3)])
def test_less_than_may_be_given_is_refused(option, least):
    refused = CliRunner().invoke(export, [option, str(least - 1), "--out", "absent"])
    assert refused.exit_code == 2
    assert f"{least - 1} is not in the range x>={least}" in refused.stderr


def test_versions_of_tensorrt():
    assert numbers(r"TensorRT (\d+)\.(\d+) or newer") == list(OLDEST)


def test_profiles_of_engines():
    found = r"Profiles: (\d+) query, or up to (\d+) captions, of the special tokens alone \(CLIP: (\d+)\)"
    shortest = caption_profiles(clip_texts(32))[0].minimum[1]
    assert numbers(found) == [CAPTION_BATCH[0], CAPTION_BATCH[-1], shortest]
    assert numbers(r"(\d+) to (\d+) clips\. More at once") == [CLIP_BATCH[0], CLIP_BATCH[-1]]
