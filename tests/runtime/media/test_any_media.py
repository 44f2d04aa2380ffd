"""However a video is made: what is embedded is what ffmpeg shows at the printed second, or it is said."""

import shutil

import numpy as np
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.packet_index import PacketIndex, read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.video import read_clips
from dgl_runtime.media.windows import frame_times
from tests.helpers.random_media import Recipe, draw, make, opens_in_ffmpeg, shown_by_ffmpeg
from tests.helpers.specs import frame_spec

SIDE, NUM_FRAMES = 32, 4
SAME = 4.0  # grey levels: what two versions of FFmpeg differ by is less, neighbouring pictures differ by 8
NEAR_S = 0.006  # so near to a change of picture either will do: containers round to milliseconds
EACH = 20  # videos a test, so that a failure names its seed soon

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed"),
]


def seconds_and_pictures(path, recipe: Recipe, index: PacketIndex):
    """What should be shown when, by a player's clock."""
    seconds, pictures = shown_by_ffmpeg(path, index.stream)
    if recipe.join or np.isnan(seconds).any() or np.any(np.diff(seconds) <= 0):
        # ffmpeg gives every picture, in order; that the times go on is what players do.
        seconds = index.start_s + (index.shown - index.shown[0]) * index.tick_s
        steps = np.diff(seconds)
        if recipe.container != "wmv":  # which leaves the last time to the reader
            np.testing.assert_allclose(steps, float(1 / recipe.rate), atol=0.051)
    order = np.argsort(seconds, kind="stable")
    return seconds[order], pictures[order]


def check(path, recipe: Recipe) -> str:
    """Read one video as indexing does; what became of it."""
    try:
        index = read_index(path)
        _, spans = Segmentation(1.0, 0.7).spans(path, lambda: None)
        clips = list(read_clips(path, spans, frame_spec(NUM_FRAMES, SIDE)))
    except MediaError as error:
        if not recipe.is_damaged and opens_in_ffmpeg(path):
            raise AssertionError("whole, and refused") from error
        return "refused"
    said = [*index.remarks, *([index.missing] if index.missing else [])]
    seconds, pictures = seconds_and_pictures(path, recipe, index)
    total = recipe.count * (2 if recipe.join else 1)
    if not said:
        # Pictures that a muxer gave one time are one to a player.
        distinct = len(pictures) if recipe.join else len(np.unique(seconds))
        assert len(index.shown) == distinct or recipe.is_damaged, "silent loss"
        assert len(pictures) == total or recipe.is_damaged or recipe.container == "mpg"
    # Of joined program streams ffmpeg loses pictures at the join, and most have no stamp of their own.
    is_vague = bool(recipe.join) and recipe.container == "mpg"
    near_s = float(1 / recipe.rate) if is_vague else NEAR_S
    expected = [preprocess(picture, frame_spec(1, SIDE)) for picture in pictures]
    for span, clip in zip(spans, clips, strict=True):
        inside = type(span)(max(span.start_s, index.start_s), span.end_s)
        for second, frame in zip(frame_times(inside, NUM_FRAMES), clip, strict=True):
            first, last = np.searchsorted(seconds, [second - near_s, second + near_s], "right") - 1
            if (recipe.end < 1 or is_vague) and last == len(expected) - 1:
                continue  # half a picture, which every decoder fills in its way; or one that ffmpeg lost
            shown = expected[max(first, 0) : last + 1]
            off = min(np.abs(frame.astype(float) - one).mean() for one in shown)
            assert off < SAME, f"another picture at second {second:.3f} (off by {off:.1f})"
    return "said" if said else "shown"


def check_many(seeds, folder) -> dict[str, int]:
    became: dict[str, int] = {}
    for seed in seeds:
        recipe = draw(seed)
        path = make(folder / f"{seed}.{recipe.container}", recipe)
        try:
            what = check(path, recipe)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {recipe}: {error}") from error
        became[what] = became.get(what, 0) + 1
        path.unlink()
    return became


@pytest.mark.parametrize("first", range(0, 300, EACH))
def test_what_is_embedded_is_what_is_shown_or_it_is_said(tmp_path, first):
    became = check_many(range(first, first + EACH), tmp_path)
    assert became.get("shown", 0) > EACH / 4


@pytest.mark.soak
def test_five_thousand_videos(tmp_path):
    became = check_many(range(1000, 6000), tmp_path)
    assert became["shown"] > 2000
