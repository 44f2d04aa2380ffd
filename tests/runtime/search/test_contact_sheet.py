import numpy as np
import pytest
from PIL import Image
from PIL.ImageFont import load_default

from dgl_runtime.search.contact_sheet import (
    FRAME_SIDE,
    FRAMES_PER_LINE,
    SheetHit,
    SheetRow,
    _shorten,
    draw_contact_sheet,
)

BAR = (0x2F, 0x6D, 0xB5)


def make_hit(
    num_frames: int = 4, size: int = 64, title: str = "1  a.mp4", weights=None
) -> SheetHit:
    """Frames of one colour each: red rises with the frame number, green is 255, blue is 0."""
    frames = np.zeros((num_frames, 3, size, size), np.uint8)
    frames[:, 0] = (20 * np.arange(num_frames, dtype=np.uint8) % 250)[:, None, None]
    frames[:, 1] = 255
    even = np.full(num_frames, 1 / num_frames, np.float32)
    return SheetHit(title, frames, even if weights is None else np.array(weights))


def drawn(tmp_path, *rows: SheetRow) -> np.ndarray:
    path = tmp_path / "made" / "sheet.png"
    draw_contact_sheet(path, rows)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


def bar_lengths(sheet: np.ndarray) -> list[int]:
    """Lengths of the bars in the first line of bars, left to right."""
    is_bar = (sheet == BAR).all(axis=2)
    row = is_bar[np.flatnonzero(is_bar.any(axis=1))[0]].astype(np.int8)
    edges = np.flatnonzero(np.diff(row, prepend=0, append=0))
    return (edges[1::2] - edges[::2]).tolist()


def test_frames_are_drawn_in_order(tmp_path):
    sheet = drawn(tmp_path, SheetRow("query", [make_hit(5)]))
    row = sheet[np.flatnonzero((sheet[:, 30] == (0, 255, 0)).all(axis=1))[0]]
    is_frame = (row[:, 1] == 255) & (row[:, 2] == 0)
    reds = row[is_frame][:, 0]
    assert sorted(set(reds.tolist())) == [0, 20, 40, 60, 80]
    assert (np.diff(reds.astype(int)) >= 0).all()
    assert len(reds) == 5 * FRAME_SIDE


def test_bars_are_as_long_as_the_weights(tmp_path):
    hit = make_hit(4, weights=[0.4, 0.1, 0.2, 0.3])
    lengths = bar_lengths(drawn(tmp_path, SheetRow("query", [hit])))
    assert lengths == [128, 32, 64, 96]


def test_bars_compare_across_hits(tmp_path):
    hits = [make_hit(2, weights=[0.25, 0.25]), make_hit(2, weights=[1.0, 0.0])]
    assert bar_lengths(drawn(tmp_path, SheetRow("query", hits))) == [32, 32]


@pytest.mark.parametrize(("size", "side"), [(16, 128), (64, 128), (96, 96), (128, 128), (336, 128)])
def test_small_frames_grow_by_whole_pixels_and_large_ones_shrink(tmp_path, size, side):
    hit = make_hit(1, size=size)
    hit.frames[0, :, :, : size // 2] = 0
    sheet = drawn(tmp_path, SheetRow("query", [hit]))
    is_green = (sheet == (0, 255, 0)).all(axis=2)
    assert is_green.any(axis=1).sum() == side
    assert abs(int(is_green.any(axis=0).sum()) - side // 2) <= (0 if size <= side else 3)


def test_long_clips_go_on_in_a_further_line(tmp_path):
    short = drawn(tmp_path, SheetRow("query", [make_hit(FRAMES_PER_LINE)]))
    long = drawn(tmp_path, SheetRow("query", [make_hit(FRAMES_PER_LINE + 1)]))
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0] + FRAME_SIDE


def test_each_query_and_hit_adds_a_block(tmp_path):
    one = SheetRow("query", [make_hit()])
    two = SheetRow("query", [make_hit(), make_hit(size=224)])
    heights = [len(drawn(tmp_path, *rows)) for rows in ([one], [two], [one, one], [one, two])]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


def test_a_query_without_hits_is_shown(tmp_path):
    assert (drawn(tmp_path, SheetRow("query", [])) < 128).any()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 5000,
        "猫 قط 👩‍👩‍👧",
        "two\nlines\tand\0more",
        "half \ud800 pair",
        "\u202e turned",
        "a \u2013 \u201cb\u201d",
    ],
)
def test_any_text_can_be_drawn(tmp_path, text):
    sheet = drawn(tmp_path, SheetRow(text, [make_hit(2, title=text)]))
    assert (sheet[:, -20:] == 255).all()


def test_long_text_ends_in_an_ellipsis():
    font = load_default(20)
    text = "a man rides a bicycle along the beach"
    assert _shorten(text, font, 1000) == text
    short = _shorten(text, font, 150)
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert 100 < font.getlength(short) <= 150
    assert _shorten(text, font, 1) == "…"


@pytest.mark.parametrize("weights", [[np.nan, 0.5], [-1.0, 7.0], [0.0, 0.0]])
def test_odd_weights_do_not_stop_the_drawing(tmp_path, weights):
    odd = drawn(tmp_path, SheetRow("query", [make_hit(2, weights=weights)]))
    assert odd.shape == drawn(tmp_path, SheetRow("query", [make_hit(2)])).shape


@pytest.mark.parametrize(
    ("shape", "dtype", "num_weights"),
    [
        ((4, 3, 8, 9), np.uint8, 4),
        ((4, 8, 8, 3), np.uint8, 4),
        ((0, 3, 8, 8), np.uint8, 0),
        ((4, 3, 8, 8), np.float32, 4),
        ((4, 3, 8, 8), np.uint8, 3),
    ],
)
def test_wrong_shapes_name_the_hit(tmp_path, shape, dtype, num_weights):
    hit = SheetHit("clip 7", np.zeros(shape, dtype), np.zeros(num_weights))
    with pytest.raises(
        ValueError, match=r"hit 'clip 7' has frames .*, expected uint8 \[F, 3, S, S\]"
    ):
        draw_contact_sheet(tmp_path / "sheet.png", [SheetRow("query", [hit])])
    assert not (tmp_path / "sheet.png").exists()


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one query or more"):
        draw_contact_sheet(tmp_path / "sheet.png", [])
