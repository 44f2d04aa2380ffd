"""The gate of float32: graphs that differ anywhere from the trained model do not pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgl_export.fold import fold
from dgl_export.parity import (
    CAPTIONS,
    drifting_patterns,
    make_golden,
    measure,
    rank_agreement,
    require,
    require_inputs,
    require_numbers,
    rerun,
)
from dgl_runtime.bundle.golden import Golden
from dgl_runtime.bundle.manifest import Parity
from dgl_runtime.errors import ExportError
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from tests.helpers.lookup_graphs import lookup_engine
from tests.helpers.specs import frame_spec
from tests.helpers.tiny_models import NUM_FRAMES, make_model

# Where a graph can be wrong: in a batch, or for what comes alone.
PLACES = tuple(
    f"{what}{how}" for what in ("captions", "clips", "frame weights") for how in ("", " alone")
)


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def golden_of(captions, clips):
    """Golden results under inputs whose first number is their row."""
    tokens = np.stack([np.arange(len(captions)), np.full(len(captions), 99)], 1).astype(np.int32)
    lengths = np.full(len(captions), 2)
    frames = np.zeros((len(clips), 3, 3, 2, 2), np.uint8)
    frames[:, 0, 0, 0, 0] = np.arange(len(clips))
    weights = np.full((len(clips), 3), 1 / 3, np.float32)
    return Golden(tokens, lengths, frames, captions, clips, weights, raw=None, inputs=None)


def measured(folder, golden, captions=None, clips=None, place=None, change=None):
    """The parity of graphs that give these captions and clips, with one number of one place changed."""
    tables = {
        "captions": golden.caption_embeddings if captions is None else captions,
        "clips": golden.clip_embeddings if clips is None else clips,
        "frame weights": golden.frame_weights,
    }
    tables |= {f"{name} alone": table for name, table in tables.items()}
    if place is not None:
        tables[place] = tables[place].copy()
        row = 0 if place in ("clips alone", "frame weights alone") else -1  # the first comes alone
        tables[place][row, -1] += change
    texts, videos, weights = (
        (tables[name], tables[f"{name} alone"]) for name in ("captions", "clips", "frame weights")
    )
    return measure(
        golden,
        lookup_engine(folder / "text_encoder.onnx", "tokens", embedding=texts),
        lookup_engine(
            folder / "clip_encoder.onnx", "frames", embedding=videos, frame_weights=weights
        ),
    )


@pytest.fixture(scope="module")
def golden():
    return golden_of(unit(5, 8), unit(4, 8, seed=1))


def test_equal_graphs_pass(golden, tmp_path):
    parity = measured(tmp_path, golden)
    assert parity == Parity(0.0, 1.0, 1.0, num_captions=5, num_clips=4)
    assert require(parity) is parity


@pytest.mark.parametrize("place", PLACES)
def test_one_number_that_differs_by_more_than_rounding_is_refused(golden, tmp_path, place):
    assert require(measured(tmp_path, golden, place=place, change=9e-6))
    parity = measured(tmp_path, golden, place=place, change=1.2e-5)
    assert parity.max_abs == pytest.approx(1.2e-5, rel=0.01)
    assert parity.rank_agreement == 1
    with pytest.raises(ExportError, match=r"^parity gate: exported embeddings differ by 1\.2e-05 "):
        require(parity)


@pytest.mark.parametrize("place", PLACES)
def test_one_number_that_is_none_is_refused(golden, tmp_path, place):
    parity = measured(tmp_path, golden, place=place, change=np.nan)
    assert np.isnan(parity.max_abs)
    assert np.isnan(parity.min_cosine) == ("weights" not in place)
    with pytest.raises(ExportError, match="differ by nan"):
        require(parity)
    with pytest.raises(ExportError, match=r"differs from the trained model's by nan; a number is"):
        require_numbers(parity)


def test_lower_precisions_may_differ_by_any_number(golden, tmp_path):
    parity = measured(tmp_path, golden, place="clips", change=0.4)
    assert require_numbers(parity) is parity


@pytest.mark.parametrize("place", PLACES[:4])
def test_the_smallest_cosine_of_any_embedding_is_told(golden, tmp_path, place):
    parity = measured(tmp_path, golden, place=place, change=0.4)
    assert parity.min_cosine == pytest.approx(1 - 0.4**2 / 2, rel=1e-5)


@pytest.mark.parametrize(("gap", "passes"), [(6e-5, False), (2e-5, True)])
def test_a_ranking_that_differs_is_refused_though_every_number_is_within_rounding(
    tmp_path, gap, passes
):
    """Many roundings that all point one way: two clips change places, unless they were tied."""
    caption = np.full(64, 1 / 8)
    aside = np.tile([1 / 8, -1 / 8], 32)
    cosines = np.array([0.5, 0.5 - gap])[:, None]
    clips = cosines * caption + np.sqrt(1 - cosines**2) * aside
    golden = golden_of(caption[None].astype(np.float32), clips.astype(np.float32))
    rounded = np.add(golden.clip_embeddings, [[-8e-6], [8e-6]])
    parity = measured(tmp_path, golden, clips=rounded)
    assert parity.max_abs == pytest.approx(8e-6, rel=0.01)
    assert parity.rank_agreement == passes
    if not passes:
        with pytest.raises(ExportError, match=r"and 0% of rankings agree \(100% needed\)"):
            require(parity)


def test_rank_agreement_counts_orders_and_forgives_ties():
    gold = np.array([[0.9, 0.5, 0.1], [0.3, 0.3 + 1e-6, 0.2]], dtype=np.float32)
    swapped = np.array([[0.5, 0.9, 0.1], [0.3 + 1e-6, 0.3, 0.2]], dtype=np.float32)
    last = np.array([[0.9, 0.1, 0.5], [0.3, 0.3, 0.2]], dtype=np.float32)
    assert rank_agreement(gold, gold) == 1
    assert rank_agreement(swapped, gold) == 0.5
    assert rank_agreement(last, gold) == 0.5


def test_clips_that_collapse_to_one_do_not_agree():
    gold = np.array([[0.9, 0.5]], dtype=np.float32)
    assert rank_agreement(np.full_like(gold, 0.5), gold) == 0


def test_lower_precisions_are_checked_against_what_they_gave(golden, tmp_path):
    captions, clips, weights = unit(5, 8, seed=2), unit(4, 8, seed=3), unit(4, 3, seed=4) ** 2
    engines = (
        lookup_engine(tmp_path / "text_encoder.onnx", "tokens", embedding=captions),
        lookup_engine(
            tmp_path / "clip_encoder.onnx", "frames", embedding=clips, frame_weights=weights
        ),
    )
    again = rerun(golden, *engines)
    for found, expected in (
        (again.tokens, golden.tokens),
        (again.frames, golden.frames),
        (again.caption_embeddings, captions),
        (again.clip_embeddings, clips),
        (again.frame_weights, weights),
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["dgl-linear", "no global prompts", "zero-shot"])
def test_golden_results_are_the_trained_models(backbone, method):
    model = make_model(backbone, method)
    golden = make_golden(model, clip_tokenizer(20), frame_spec(NUM_FRAMES, 16))
    np.testing.assert_array_equal(golden.tokens, clip_tokenizer(20)(CAPTIONS).ids)
    with torch.no_grad():
        captions = model.encode_captions(torch.from_numpy(golden.tokens).long())
        clips = model.encode_clips(torch.from_numpy(golden.frames))
        weights = fold(model).clip_encoder(torch.from_numpy(golden.frames))[1]
    np.testing.assert_array_equal(golden.caption_embeddings, captions)
    np.testing.assert_array_equal(golden.clip_embeddings, clips)
    np.testing.assert_allclose(golden.frame_weights, weights, rtol=0, atol=2e-6)
    assert golden.frames.shape[1] == NUM_FRAMES


@pytest.fixture(scope="module")
def of_model(backbone):
    """Golden inputs and results of a model, with its tokenizer and its way with frames."""
    tokenizer, frames = clip_tokenizer(20), frame_spec(NUM_FRAMES, 16)
    return make_golden(make_model(backbone, "zero-shot"), tokenizer, frames), frames, tokenizer


def test_a_bundle_that_does_with_inputs_what_the_model_does_passes(of_model):
    require_inputs(*of_model)


@pytest.mark.parametrize(
    "rules",
    [
        {"resize": "squash"},
        {"interpolation": "bilinear"},
        {"clean": "canonicalize"},
        {"pad_id": 1},
        {"pad_to": 20},
        {"end_id": 5},
    ],
)
def test_a_bundle_that_would_do_something_else_with_inputs_is_refused(of_model, rules):
    golden, frames, tokenizer = of_model
    ((name, value),) = rules.items()
    if hasattr(frames, name):
        frames = replace(frames, **rules)
    else:
        tokenizer = tokenizer.fed_as(replace(tokenizer.spec, **rules))
    with pytest.raises(
        ExportError,
        match=rf"^parity gate: .* than the model's: {name} is {value!r}, the model's is ",
    ):
        require_inputs(golden, frames, tokenizer)


def test_golden_clips_differ_and_their_frames_do_but_compress_well():
    clips = drifting_patterns(3, 2, 16)
    assert clips.shape == (3, 2, 3, 16, 16)
    assert len({frame.tobytes() for frame in clips.reshape(6, -1)}) == 6
    blocks = clips.reshape(3, 2, 3, 4, 4, 4, 4)
    np.testing.assert_array_equal(blocks, blocks[:, :, :, :, :1, :, :1].repeat(4, 4).repeat(4, 6))
    assert (np.ptp(blocks, axis=(3, 5)) > 20).all(), "no frame has one colour"
    assert clips.min() < 20
    assert clips.max() > 235
    assert np.abs(clips[:, 1].astype(int) - clips[:, 0]).max() <= 120, "a drift, not another clip"
    np.testing.assert_array_equal(clips, drifting_patterns(3, 2, 16))
