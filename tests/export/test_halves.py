"""One half of the calibration set chooses scales and kept layers; the other alone judges."""

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

from dgl_export import lower_precision, quality
from dgl_export.calibration import Calibration, Half, made_calibration
from dgl_export.formats import Target
from dgl_export.layer_statistics import linear_layers
from dgl_export.lower_precision import lower
from dgl_runtime.bundle.manifest import MIN_COSINE
from dgl_runtime.engines.opening import open_engine
from dgl_runtime.errors import ExportError
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from tests.helpers.specs import frame_spec
from tests.helpers.tiny_models import NUM_FRAMES

DYNAMIC, STATIC = (
    Target("onnx", "int8"),
    Target("trt", "int8"),
)  # the second has scales that are set


@pytest.fixture(scope="module")
def made():
    """A made calibration set whose halves are of different sizes, and with answers."""
    both = made_calibration(frame_spec(NUM_FRAMES, 16), clip_tokenizer(20))
    first, second = both.calibrates, both.judges
    return Calibration(
        Half(first.tokens[:6], first.frames[:6], np.arange(6)),
        Half(second.tokens[:5], second.frames[:4], np.array([0, 1, 2, 3, 0])),
    )


def lowered(float32, target, calibration, out):
    out.mkdir()
    return lower(*float32, target, calibration, out)


def embedded(folder, graphs, half):
    engines = [open_engine(folder / graph.file, device="cpu", threads=0) for graph in graphs]
    return quality.embed_half(engines, half)


def cost(float32, out, written, half):
    """What the written graphs lose on a half."""
    folder, graphs = float32
    ours = embedded(out, [one.graph for one in written], half)
    return quality.compare(ours, embedded(folder, graphs, half), half.answers)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_it_costs_is_measured_on_the_half_that_judges(float32, made, tmp_path):
    found = lowered(float32, STATIC, made, tmp_path / "out")
    judged = cost(float32, tmp_path / "out", found.written, made.judges)
    assert vars(found.measured) == pytest.approx(vars(judged), abs=1e-6)
    assert (found.measured.num_captions, found.measured.num_clips) == (5, 4)
    assert found.measured.recall_at_1_before is not None
    calibrated = cost(float32, tmp_path / "out", found.written, made.calibrates)
    assert calibrated.min_cosine != pytest.approx(found.measured.min_cosine, abs=1e-6)


def test_scales_that_suit_their_own_half_alone_are_refused(float32, made, tmp_path, monkeypatch):
    """Scales set on clips of one grey, judged on clips of colours."""
    monkeypatch.setattr(quality, "MIN_TOP1", {"int8": 0})  # to random weights all clips are alike
    grey = replace(made.calibrates, frames=np.full_like(made.calibrates.frames, 127))
    others = Calibration(grey, made.judges)
    monkeypatch.setitem(MIN_COSINE, "int8", 0)
    found = lowered(float32, STATIC, others, tmp_path / "out")
    good = cost(float32, tmp_path / "out", found.written, grey).min_cosine
    bad = cost(float32, tmp_path / "out", found.written, made.judges).min_cosine
    monkeypatch.setitem(MIN_COSINE, "int8", (good + bad) / 2)
    with pytest.raises(ExportError, match=rf"smallest cosine {bad:.4f}"):
        found.require()


def test_the_half_that_judges_chooses_nothing(float32, made, tmp_path):
    other = Half(made.judges.tokens[::-1], 255 - made.judges.frames, None)
    for name, judges in (("one", made.judges), ("other", other)):
        lowered(float32, STATIC, replace(made, judges=judges), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_layers_are_kept_until_half_of_the_allowed_loss_is_left(
    float32, made, tmp_path, monkeypatch
):
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 0)
    made = replace(made, calibrates=replace(made.calibrates, answers=None))
    monkeypatch.setitem(MIN_COSINE, "int8", -1)
    none = lowered(float32, STATIC, made, tmp_path / "none")
    reached = cost(float32, tmp_path / "none", none.written, made.calibrates).min_cosine
    for name, aim, kept in (("enough", reached - 1e-6, 0), ("more", reached + 1e-6, 2)):
        monkeypatch.setitem(MIN_COSINE, "int8", 1 - 2 * (1 - aim))
        found = lowered(float32, STATIC, made, tmp_path / name)
        assert [len(one.graph.kept) for one in found.written] == [kept, kept]


def test_no_more_than_two_fifths_are_kept_and_the_worst_of_the_others_are_named(
    float32, made, tmp_path, monkeypatch
):
    monkeypatch.setitem(quality.MIN_TOP1, "int8", 2)  # cannot be reached
    found = lowered(float32, DYNAMIC, made, tmp_path / "out")
    for one in found.written:
        layers = linear_layers(onnx.load(float32[0] / one.graph.file))
        assert len(one.graph.kept) == 4 == int(0.4 * len(layers)) & ~1, "8 would be too many"
        nodes = onnx.load(tmp_path / "out" / one.graph.file).graph.node
        integer = [node for node in nodes if node.op_type == "MatMulInteger"]
        assert one.graph.low_precision_nodes == len(integer) == len(layers) - 4
    with pytest.raises(ExportError, match=r"Worst layers: text_encoder\.onnx ") as caught:
        found.require()
    named = str(caught.value).partition("Worst layers: ")[2].partition(". Nothing")[0]
    for one, text in zip(found.written, named.split("; "), strict=True):
        assert text.startswith(one.graph.file)
        assert re.fullmatch(r"\S+( \S+ \(\d+\.\d\d%\),?){3}", text)
        assert text.count("), ") == 2
        assert not any(f" {name} " in text for name in one.graph.kept)
        losses = [float(part.partition("%")[0]) for part in text.split("(")[1:]]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("precision", "is_smoothed"), [("int8", True), ("fp8", False)])
def test_outliers_are_smoothed_where_they_cost_something(
    float32, made, tmp_path, monkeypatch, precision, is_smoothed
):
    smoothed, smooth = [], lower_precision.smooth
    monkeypatch.setattr(
        lower_precision, "smooth", lambda *given: smoothed.append(1) or smooth(*given)
    )
    lowered(float32, Target("trt", precision), made, tmp_path / "out")
    assert len(smoothed) == (2 if is_smoothed else 0)
