"""Corrections for hubs as dgl-eval applies them: chosen on held-out clips, and of use against hubs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime.search.querybank import BETAS
from dgl_train.data.captioned_clip import CaptionedClip
from dgl_train.evaluation import post_process as module
from dgl_train.evaluation.evaluate import Embeddings, Encoders, report
from dgl_train.evaluation.post_process import Calibration, calibrate, post_process
from tests.helpers.specs import frame_spec

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


# ---- right values, by the formulas of the two papers ------------------------------------------


def dual(similarity, beta):
    return similarity * np.exp(beta * similarity) / np.exp(beta * similarity).sum(axis=0)


def qb(data, bank, beta):
    similarity, against = data.similarity().astype(float), (bank @ data.clips.T).astype(float)
    found = similarity.copy()
    for row in found:
        if row.argmax() in against.argmax(axis=1):
            row -= np.log(np.exp(beta * against).sum(axis=0)) / beta
    return found


def recall_and_mean_rank(similarity):
    ranks = [(row >= row[number]).sum() for number, row in enumerate(similarity)]
    return 100 * np.mean(np.equal(ranks, 1)), np.mean(ranks)


def best_beta(correct):
    """The highest R@1 on the held-out clips, then the lowest mean rank, then the smallest beta."""

    def order(beta):
        recall, mean_rank = recall_and_mean_rank(correct(beta))
        return -recall, mean_rank, beta

    return min(BETAS, key=order)


@pytest.mark.parametrize("seed", range(6))
def test_figures_and_temperatures_are_those_of_the_formulas(seed):
    test, held_out = embeddings(seed, 30), embeddings(seed + 100, 25)
    bank = embeddings(seed + 200, 35).captions
    found = post_process(test, Calibration(held_out, bank, "the val split"))
    expected = [
        ("dual softmax", lambda data, beta: dual(data.similarity().astype(float), beta)),
        ("QB-Norm", lambda data, beta: qb(data, bank, beta)),
    ]
    for one, (name, correct) in zip(found, expected, strict=True):
        beta = best_beta(lambda beta, correct=correct: correct(held_out, beta))
        recall, mean_rank = recall_and_mean_rank(correct(test, beta))
        assert (one.method, one.beta, one.chosen_on) == (name, beta, "the val split")
        assert one.text_to_video.r1 == pytest.approx(recall)
        assert one.text_to_video.mean_rank == pytest.approx(mean_rank)
    recall, mean_rank = recall_and_mean_rank(dual(test.similarity().T.astype(float), found[0].beta))
    assert found[0].video_to_text.r1 == pytest.approx(recall)
    assert found[0].video_to_text.mean_rank == pytest.approx(mean_rank)


def test_clips_with_several_captions_are_ranked_as_asked(test_set, calibration):
    several = replace(test_set, clips=test_set.clips[:20], caption_clip=np.arange(40) // 2)
    single, grouped = (
        post_process(several, calibration, group_captions=on)[0].video_to_text
        for on in (False, True)
    )
    beta = post_process(several, calibration)[0].beta
    corrected = dual(several.similarity().T.astype(float), beta).T
    assert post_process(several, calibration)[0].video_to_text == single
    own = np.array([corrected[2 * i : 2 * i + 2, i].max() for i in range(20)])
    others = np.array([np.delete(corrected[:, i], [2 * i, 2 * i + 1]) for i in range(20)])
    assert single.mean_rank == pytest.approx(1 + (others >= own[:, None]).sum(axis=1).mean())
    best = np.array([corrected[2 * j : 2 * j + 2].max(axis=0) for j in range(20)])
    ranks = [(best[:, i] >= own[i]).sum() for i in range(20)]
    assert grouped.mean_rank == pytest.approx(np.mean(ranks))


# ---- what the corrections may know ---------------------------------------------------------------


@pytest.fixture
def numbered(clips):
    """Encoders that embed "caption 7" as 7, and clips as their first pixel."""
    return Encoders(
        lambda captions: np.array([[float(one.split()[1])] for one in captions], np.float32),
        lambda frames: frames[:, 0, 0, 0, :1].astype(np.float32),
        lambda frames: np.full(frames.shape[:2], 0.5, np.float32),
        tokenizer=None,
        frames=frame_spec(2, 16),
    )


def captioned(clips, numbers, split):
    return [
        replace(clip, caption=f"caption {number}", split=split)
        for clip, number in zip(clips, numbers, strict=False)
    ]


def test_the_bank_is_the_captions_of_training_clips_each_once(clips, numbered):
    held_out = captioned(clips[5:], [1, 2, 3], "val")
    train = captioned(clips[:5], [7, 4, 7, 9, 4], "train")
    found = calibrate(numbered, train, held_out, progress=False)
    np.testing.assert_array_equal(found.bank, [[7], [4], [9]])
    np.testing.assert_array_equal(found.held_out.captions, [[1], [2], [3]])
    assert len(found.held_out.clips) == 3
    assert found.chosen_on == "the val split (3 captions)"


@pytest.mark.parametrize("splits", [["train"] * 3, ["val", "val", "train"]])
def test_clips_held_out_of_train_are_not_called_the_val_split(clips, numbered, splits):
    train = captioned(clips[:4], range(4), "train")
    held_out = [
        replace(clip, split=split)
        for clip, split in zip(captioned(clips[4:], range(3), ""), splits, strict=False)
    ]
    found = calibrate(numbered, train, held_out, progress=False)
    assert found.chosen_on == "a part held out of train (3 captions)"


def test_of_very_many_training_captions_some_are_taken_evenly(clips, numbered, monkeypatch):
    monkeypatch.setattr(module, "_BANK", 3)
    train = [CaptionedClip(Path("absent.mp4"), f"caption {number}") for number in range(9)]
    found = calibrate(numbered, train, captioned(clips[:2], range(2), "val"), progress=False)
    np.testing.assert_array_equal(found.bank, [[0], [4], [8]])


@pytest.mark.parametrize(("options", "is_told"), [({}, True), ({"progress": False}, False)])
def test_a_bar_tells_how_far_it_is_unless_nobody_wants_it(
    clips, numbered, options, is_told, capsys
):
    train = captioned(clips, range(8), "train")
    calibrate(numbered, train, captioned(clips[:2], range(2), "val"), **options)
    assert ("0/2" in capsys.readouterr().err) == is_told
