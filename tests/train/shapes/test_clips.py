import csv
import itertools
import re
from collections import Counter

import av
import numpy as np
import pytest

from dgl_runtime.errors import ConfigError
from dgl_train.shapes import clips as synthetic
from dgl_train.shapes.clips import (
    BACKGROUNDS,
    COLOURS,
    REVERSES,
    SHAPES,
    SPLITS,
    Look,
    draw,
    looks,
    make_shapes,
    plan_clips,
    render_clip,
)

SIZES = {"train": 640, "val": 128, "test": 256}
TINY = {"num_train": 32, "num_val": 16, "num_test": 16, "progress": False}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("made") / "shapes", **TINY)


def read_rows(folder):
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def event_of(caption):
    return re.sub(r"^an? \w+ \w+ | over a \w+ background$", "", caption)


def foreground(frames):
    """Which pixels are coloured: all backgrounds are grey."""
    return np.ptp(frames.astype(int), axis=-1) > 60


def centre_and_area(frames):
    mask = foreground(frames)
    row, column = np.mgrid[: frames.shape[1], : frames.shape[2]]
    area = mask.sum((1, 2))
    return (mask * column).sum((1, 2)) / area, (mask * row).sum((1, 2)) / area, area


def test_splits_share_no_look_and_cover_all():
    pools = [looks(split) for split in SPLITS]
    assert [len(pool) for pool in pools] == [80, 16, 32]
    assert len(set(itertools.chain(*pools))) == len(COLOURS) * len(SHAPES) * len(BACKGROUNDS)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("attribute", ["colour", "shape", "background"])
def test_held_out_looks_use_each_value_equally_often(split, attribute):
    assert len(set(Counter(getattr(look, attribute) for look in looks(split)).values())) == 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_event_is_balanced_and_every_reversal_is_in_the_split(split, seed):
    clips = plan_clips(split, SIZES[split], seed)
    events = Counter(
        event_of(clip.caption).replace("turns ", "turns:").split(":")[0] for clip in clips
    )
    assert len(events) == 8
    assert set(events.values()) == {SIZES[split] // 8}
    captions = {clip.caption for clip in clips}
    assert len(captions) == len(clips) == SIZES[split]
    assert captions == {clip.reversed_caption for clip in clips}
    assert {clip.look for clip in clips} <= set(looks(split))


def test_a_reversed_caption_describes_the_reversed_pixels():
    clips = plan_clips("test", 32, 0)
    by_caption = {clip.caption: render_clip(clip) for clip in clips}
    for clip in clips:
        np.testing.assert_array_equal(
            by_caption[clip.caption][::-1], by_caption[clip.reversed_caption]
        )


def test_captions_are_sentences():
    assert (
        Look("red", "circle", "dark").caption("moves left")
        == "a red circle moves left over a dark background"
    )
    assert (
        Look("orange", "cross", "light").caption("turns blue")
        == "an orange cross turns blue over a light background"
    )
    assert Look("orange", "cross", "light").phrase("small") == "a small orange cross"


@pytest.mark.parametrize("num_clips", [0, -16, 8, 100, 272])
def test_a_size_that_cannot_be_balanced_is_refused(num_clips):
    with pytest.raises(
        ConfigError, match=r"cannot be balanced. Give a multiple of 16 up to 256\.$"
    ):
        plan_clips("test", num_clips, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_centred_smooth_and_of_the_size_asked(shape):
    one = np.array([32.0])
    frame = draw(
        Look("red", shape, "dark"),
        x=one,
        y=one,
        radius=np.array([12.0]),
        rgb=np.array([[255.0, 25, 25]]),
    )[0, :, :, 0].astype(float)
    cover = (frame - 25) / 230
    assert cover.max() == 1
    assert np.any((cover > 0.1) & (cover < 0.9))
    np.testing.assert_allclose(cover, cover[:, ::-1], atol=0.01)
    rows, columns = np.nonzero(cover > 0.5)
    assert 16 <= np.ptp(columns) + 1 <= 24
    assert 16 <= np.ptp(rows) + 1 <= 24


def test_every_video_has_24_frames_of_64_pixels_and_shows_what_its_caption_says(shapes):
    rows = read_rows(shapes)
    assert [row["split"] for row in rows] == ["train"] * 32 + ["val"] * 16 + ["test"] * 16
    seen = set()
    for row in rows:
        frames = decode(shapes / row["video"])
        assert frames.shape == (24, 64, 64, 3)
        event = event_of(row["caption"])
        seen.add(event.split(" ")[0] if event.startswith("turns") else event)
        if event.startswith("moves"):
            x, y, _ = centre_and_area(frames)
            track = {"right": x, "left": -x, "down": y, "up": -y}[event.split()[1]]
            assert track[-1] - track[0] > 20
            assert np.all(np.diff(track) > 0)
        elif event in ("grows", "shrinks"):
            _, _, area = centre_and_area(frames)
            ratio = area[-1] / area[0]
            assert (ratio if event == "grows" else 1 / ratio) > 3
        elif event.startswith("turns"):
            mask = foreground(frames)
            first, last = (np.median(frames[i][mask[i]], axis=0) for i in (0, -1))
            np.testing.assert_allclose(first, COLOURS[row["caption"].split()[1]], atol=25)
            np.testing.assert_allclose(last, COLOURS[event.split()[1]], atol=25)
        else:
            assert event == "stays still"
            assert np.abs(frames[0].astype(int) - frames[-1]).mean() < 2
    assert seen == {*REVERSES, *REVERSES.values(), "turns", "stays still"}


def test_the_same_seed_gives_the_same_captions_and_pixels(shapes, tmp_path):
    again = make_shapes(tmp_path / "again", **TINY)
    assert (again / "captions.csv").read_bytes() == (shapes / "captions.csv").read_bytes()
    for video in ("train_00000", "val_00003", "test_00015"):
        first, second = (decode(folder / f"videos/{video}.mp4") for folder in (shapes, again))
        np.testing.assert_array_equal(first, second)


def test_another_seed_gives_other_clips():
    one, two = (plan_clips("train", 32, seed) for seed in (0, 1))
    assert [clip.caption for clip in one] != [clip.caption for clip in two]
    assert not np.array_equal(render_clip(one[0]), render_clip(two[0]))


def test_a_second_call_draws_nothing(shapes, monkeypatch):
    monkeypatch.setattr(synthetic, "write_mp4", lambda *_: pytest.fail("drew again"))
    assert make_shapes(shapes, **TINY) == shapes


def test_a_folder_of_another_configuration_is_refused(shapes):
    with pytest.raises(
        ConfigError, match=r'"seed": 0.*"seed": 1.*Give another folder or delete it'
    ):
        make_shapes(shapes, **TINY, seed=1)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        make_shapes(tmp_path, **TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupted(path, frames):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", **TINY)
    assert list(tmp_path.iterdir()) == []
