"""Corrections for hubs as dgl-eval applies them: chosen on held-out clips, and of use against hubs."""

from dataclasses import replace

import numpy as np
import pytest

from dgl_runtime.querybank import BETAS
from dgl_train.evaluate import Embeddings, report
from dgl_train.post_process import Calibration, post_process

NO_ROWS, NO_CAPTIONS = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)


def embeddings(seed, count=40):
    """Captions near their clips, and a direction that some clips share with every caption: hubs."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(16)
    clips = rng.standard_normal((count, 16)) + np.linspace(0, 1.5, count)[:, None] * common
    captions = clips + 0.6 * rng.standard_normal((count, 16)) + common
    captions, clips = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (captions, clips)
    )
    return Embeddings(captions, clips, np.arange(count), NO_CAPTIONS, NO_ROWS)


@pytest.fixture(scope="module")
def test_set():
    return embeddings(0)


@pytest.fixture(scope="module")
def calibration(test_set):
    """A bank and held-out clips with hubs of the same kind."""
    rng = np.random.default_rng(1)
    bank = test_set.captions + 0.2 * rng.standard_normal(test_set.captions.shape)
    return Calibration(embeddings(0, 60), bank.astype(np.float32), "the val split")


def test_both_corrections_help_against_hubs(test_set, calibration):
    raw = report(test_set).text_to_video
    dual, qb = post_process(test_set, calibration)
    assert dual.text_to_video.mean_rank < raw.mean_rank
    assert qb.text_to_video.mean_rank < raw.mean_rank
    assert (dual.uses, qb.uses) == (
        "uses the whole test set",
        "uses a bank of 40 training captions",
    )
    assert dual.video_to_text is not None
    assert qb.video_to_text is None


def test_the_test_set_has_no_say_in_the_temperature(test_set, calibration):
    shuffled = replace(test_set, caption_clip=test_set.caption_clip[::-1].copy())
    betas = [one.beta for one in post_process(test_set, calibration)]
    assert [one.beta for one in post_process(shuffled, calibration)] == betas
    assert set(betas) <= set(BETAS)


def test_one_caption_per_clip_is_corrected_the_same_with_groups(test_set, calibration):
    plain, _ = post_process(test_set, calibration)
    grouped, _ = post_process(test_set, calibration, group_captions=True)
    assert plain == grouped
