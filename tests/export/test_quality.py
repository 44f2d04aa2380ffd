"""The gate of lower precisions: each bound of docs/export.md, just inside and just outside of it."""

import json

import numpy as np
import pytest

from dgl_export.calibration import Half
from dgl_export.quality import Embeddings, compare, embed_half, faults, recall_at_1, require
from dgl_runtime.bundle.manifest import Quality
from dgl_runtime.bundle.tokenizer import Tokens
from dgl_runtime.errors import ExportError
from tests.helpers.lookup_graphs import lookup_engine

PRECISIONS = (("fp16", 0.999, 99), ("bf16", 0.999, 99), ("int8", 0.99, 95), ("fp8", 0.99, 95))
UNHARMED = Quality(1.0, 1.0, 1.0, None, None, num_captions=100, num_clips=8)


def turned(cosine):
    """A unit vector of two numbers, so far from [1, 0]."""
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)


def between(*cosines):
    """Rows with these cosines to [1, 0], [N, 2]."""
    return np.stack([turned(cosine) for cosine in cosines])


@pytest.mark.parametrize(("precision", "bound", "_"), PRECISIONS)
@pytest.mark.parametrize("side", ["captions", "clips"])
def test_one_embedding_turned_too_far_is_refused(precision, bound, _, side):
    exact = Embeddings(between(*[1] * 9), between(*[1] * 9))
    for cosine, passes in ((bound + 1e-4, True), (bound - 1e-4, False), (np.nan, False)):
        rows = between(*[1] * 8, cosine)
        ours = Embeddings(**{**vars(exact), side: rows})
        measured = compare(ours, exact, None)
        np.testing.assert_allclose(measured.min_cosine, cosine, rtol=0, atol=1e-6)
        assert (faults(measured, precision) == []) == passes


@pytest.mark.parametrize(("precision", "_", "needed"), PRECISIONS)
def test_one_first_clip_too_many_that_changes_is_refused(precision, _, needed):
    axes = np.eye(2, dtype=np.float32)
    exact = Embeddings(axes[[0] * 100], axes)
    for same in (needed, needed - 1):
        ours = Embeddings(axes[[0] * same + [1] * (100 - same)], axes)
        measured = compare(ours, exact, None)
        assert measured.top1_agreement == pytest.approx(same / 100)
        told = [fault for fault in faults(measured, precision) if "first clip" in fault]
        assert bool(told) == (same < needed)


def test_a_clip_that_is_a_thousandth_from_the_first_is_as_good_an_answer():
    captions = between(1)
    for gap, agrees in ((0.9e-3, 1), (1.1e-3, 0)):
        exact = Embeddings(captions, between(0.5, 0.5 - gap, 0.1))
        ours = Embeddings(captions, between(0.5 - gap, 0.5, 0.1))
        assert compare(ours, exact, None).top1_agreement == agrees


@pytest.mark.parametrize(
    ("captions", "lost", "passes"),
    [
        (1000, 10, True),  # 1 point
        (1000, 11, False),
        (200, 2, True),
        (200, 3, False),
        (32, 2, True),  # two captions
        (32, 3, False),
        (31, 1, True),  # a smaller set: one
        (31, 2, False),
        (8, 1, True),
        (8, 2, False),
    ],
)
def test_recall_may_fall_by_a_point_or_by_two_captions(captions, lost, passes):
    recall = {
        "recall_at_1_before": 100.0,
        "recall_at_1_after": 100 * (captions - lost) / captions,
    }
    measured = Quality(**{**vars(UNHARMED), **recall, "num_captions": captions})
    assert (faults(measured, "int8") == []) == passes
    better = Quality(
        **{**vars(measured), "recall_at_1_before": 50.0, "recall_at_1_after": 100.0},
    )
    assert faults(better, "int8") == []


def test_recall_falls_by_as_many_captions_from_wherever_it_was():
    for captions, right in ((3, 3), (7, 5), (20, 11), (33, 3), (58, 3)):
        lost = 1 if captions < 32 else 2
        recall = [100 * one / captions for one in (right, right - lost)]
        names = ("recall_at_1_before", "recall_at_1_after")
        measured = {**dict(zip(names, recall, strict=True)), "num_captions": captions}
        assert faults(Quality(**{**vars(UNHARMED), **measured}), "int8") == []


@pytest.mark.parametrize(("precision", "bound", "_"), PRECISIONS)
def test_a_cosine_at_its_bound_passes(precision, bound, _):
    assert faults(Quality(**{**vars(UNHARMED), "min_cosine": bound}), precision) == []


def test_what_is_measured_can_be_written_into_a_manifest():
    rows = Embeddings(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    measured = compare(rows, rows, np.arange(2))
    assert Quality(**json.loads(json.dumps(vars(measured)))) == measured


def test_what_is_measured():
    """Four captions, the last of which has no clip; the second clip turns away from its caption."""
    exact = Embeddings(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 0, 2]])
    ours = Embeddings(exact.captions, exact.clips.copy())
    ours.clips[1] = [0, 0.8, 0.6, 0]
    measured = compare(ours, exact, np.array([1, 0, 2, 2]))
    assert measured.min_cosine == pytest.approx(0, abs=1e-6)
    assert measured.mean_cosine == pytest.approx(6 / 7)
    # The first caption's clip was the second; the others keep their first clip.
    assert measured.top1_agreement == 0.75
    assert (measured.recall_at_1_before, measured.recall_at_1_after) == (75.0, 50.0)
    assert (measured.num_captions, measured.num_clips) == (4, 3)
    unknown = compare(ours, exact, None)
    assert (unknown.recall_at_1_before, unknown.recall_at_1_after) == (None, None)


def test_recall_at_1_is_the_percentage_that_rank_their_own_clip_first():
    similarity = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], np.float32)
    assert recall_at_1(similarity, np.array([0, 1, 1, 0])) == 75.0


def test_a_half_is_embedded_whole_and_in_order(tmp_path):
    """More than a batch of each; captions by the graph of captions, clips by that of clips."""
    tokens = np.stack([np.arange(35), np.full(35, 99)], 1).astype(np.int32)
    frames = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1, 1).repeat(3, axis=2)
    captions, clips = np.arange(35.0)[:, None], -np.arange(5.0)[:, None]
    engines = (
        lookup_engine(tmp_path / "text_encoder.onnx", "tokens", embedding=captions),
        lookup_engine(tmp_path / "clip_encoder.onnx", "frames", embedding=clips),
    )
    embedded = embed_half(engines, Half(Tokens(tokens, np.full(35, 2)), frames, None))
    np.testing.assert_array_equal(embedded.captions, captions)
    np.testing.assert_array_equal(embedded.clips, clips)
    assert embedded.captions.dtype == embedded.clips.dtype == np.float32


def test_a_refusal_names_every_bound_that_is_missed():
    measured = Quality(0.5, 0.9, 0.5, 80.0, 40.0, num_captions=100, num_clips=8)
    with pytest.raises(ExportError) as caught:
        require(measured, "fp16", "text_encoder.onnx blocks.0.fc (3.00%)")
    assert str(caught.value).startswith(
        "quality gate: fp16 gives smallest cosine 0.5000 (at least 0.999 needed); the same first clip for "
        "50.0% of captions (at least 99% needed); R@1 falls from 80.0 to 40.0 (at most 2.0 less), on 100 "
        "captions and 8 clips held out. Worst layers: text_encoder.onnx blocks.0.fc (3.00%). "
        "Nothing was written."
    )
    require(UNHARMED, "fp16", "")
