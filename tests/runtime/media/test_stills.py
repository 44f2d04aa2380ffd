"""Pictures that do not move: the whole picture, whatever its name, or a refusal that names the reason."""

import io
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from dgl_runtime.decoding.decode_process import DecodeProcess, Limits
from dgl_runtime.errors import MediaError
from dgl_runtime.media import stills
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.pixels import preprocess
from dgl_runtime.media.preview import picture, write_preview
from dgl_runtime.media.stills import find_still, read_still
from dgl_runtime.media.video import Span, probe, read_clips
from tests.helpers.odd_videos import truncate, write_video
from tests.helpers.specs import frame_spec

SIZE = (64, 48)


def coloured(size=SIZE):
    """Each quarter in another colour."""
    width, height = size
    made = Image.new("RGB", size, (200, 40, 40))
    made.paste((40, 180, 40), (width // 2, 0, width, height // 2))
    made.paste((40, 40, 220), (0, height // 2, width // 2, height))
    made.paste((220, 220, 60), (width // 2, height // 2, width, height))
    return made


def assert_is(path, expected, most=6):
    """``path`` is one picture, read alike by every way in."""
    expected = np.asarray(expected)
    found = read_still(path)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() <= most
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (*expected.shape[1::-1], 1)
    (clip,) = read_clips(path, [Span(0.0, 1.0)], frame_spec(2, 32))
    assert np.array_equal(clip, np.stack([preprocess(found, frame_spec(1, 32))] * 2))


@pytest.mark.parametrize(
    "form", ["avif", "bmp", "gif", "jpeg", "jpeg2000", "png", "ppm", "tiff", "webp"]
)
@pytest.mark.parametrize("name", ["picture", "picture.mp4", "picture.jpg"])
def test_what_a_picture_is_its_content_tells(tmp_path, form, name):
    path = tmp_path / name
    coloured().save(path, format=form, **({"lossless": True} if form == "webp" else {}))
    assert_is(path, coloured())


def test_a_picture_has_a_thumbnail_and_a_preview(tmp_path):
    coloured().save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.png").read_bytes())
    assert Image.open(io.BytesIO(picture(tmp_path / "a.mp4", 0.0, 32))).size == (32, 24)
    write_preview(tmp_path / "a.mp4", 0.0, 1.0, str(tmp_path / "preview.mp4"), lambda: None)
    assert probe(tmp_path / "preview.mp4").width == 64
    (tmp_path / "a.pgm").write_bytes(b"P5 64 48 65535\n" + bytes(64 * 48 * 2))  # not for FFmpeg
    write_preview(tmp_path / "a.pgm", 0.0, 1.0, str(tmp_path / "preview.mp4"), lambda: None)
    assert probe(tmp_path / "preview.mp4").num_frames == 1


def test_a_picture_lasts_a_moment_and_lacks_nothing(tmp_path):
    coloured().save(tmp_path / "a.png")
    index = read_index(tmp_path / "a.png")
    assert index.is_still
    assert (index.duration_s, index.start_s, index.missing, index.remarks) == (0.04, 0.0, None, ())


@pytest.mark.skipif(not shutil.which("avifenc"), reason="needs the command avifenc")
def test_an_avif_in_tiles_is_one_picture(tmp_path):
    whole, tiles = coloured((512, 384)), []
    for y in (0, 192):
        for x in (0, 256):
            tiles.append(tmp_path / f"{x}-{y}.png")
            whole.crop((x, y, x + 256, y + 192)).save(tiles[-1])
    path = tmp_path / "tiles.avif"
    subprocess.run(["avifenc", "--grid", "2x2", *tiles, path], check=True, capture_output=True)
    assert_is(path, whole)
    shutil.copy(path, tmp_path / "tiles.mp4")
    assert_is(tmp_path / "tiles.mp4", whole)


def test_a_heic_with_more_than_its_picture_is_that_picture(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    clear = coloured()
    clear.putalpha(255)
    for name, made in (("plain.heic", coloured()), ("clear.heic", clear)):
        heif.from_pillow(made).save(tmp_path / name)
        assert_is(tmp_path / name, coloured())
    several = heif.from_pillow(coloured())
    several.add_from_pillow(Image.new("RGB", SIZE))
    several.save(tmp_path / "several.heic")
    assert_is(tmp_path / "several.heic", coloured())
    assert find_still(tmp_path / "several.heic").remark == "holds 2 pictures; the first is taken"


def test_a_heic_in_pieces_needs_the_plugin_and_says_so(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    several = heif.from_pillow(coloured())
    several.save(tmp_path / "one.heic")
    several.add_from_pillow(Image.new("RGB", SIZE))
    several.save(tmp_path / "several.heic")
    monkeypatch.setattr(stills, "find_spec", lambda name: None)
    with pytest.raises(
        MediaError, match=r"in several pieces, which needs .* 'dgl-retrieval\[heic\]'"
    ):
        read_index(tmp_path / "several.heic")
    assert probe(tmp_path / "one.heic").width == 64  # one stream is the whole


def test_pictures_are_read_without_the_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    coloured().save(tmp_path / "a.png")
    assert_is(tmp_path / "a.png", coloured())


def with_brands(path, major, *compatible, tracks=False):
    """A file that says of itself what it is, and holds no more."""
    brands = major.encode() + bytes(4) + b"".join(brand.encode() for brand in compatible)
    content = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands
    content += struct.pack(">I4s", 8, b"free")
    content += struct.pack(">Q8s", 0x1_6D6F_6F76, (16).to_bytes(8)) if tracks else b""
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("major", "compatible", "tracks", "is_still"),
    [
        ("avif", (), False, True),
        ("avif", ("mif1",), True, True),
        ("heic", ("mif1", "heic"), False, True),
        ("mif1", ("heic",), False, True),
        ("jpeg", ("mif1",), False, True),
        ("isom", ("mif1", "avif"), False, True),
        ("isom", ("isom", "mif1", "avif"), False, True),
        ("isom", ("mif1", "avif"), True, False),
        ("avis", ("avif", "mif1"), False, False),
        ("hevc", ("heic", "msf1"), False, False),
        ("msf1", ("mif1",), False, False),
        ("isom", ("iso2", "mp41"), False, False),
        ("qt  ", (), True, False),
    ],
)
def test_brands_tell_pictures_from_videos(tmp_path, major, compatible, tracks, is_still):
    path = with_brands(tmp_path / "file", major, *compatible, tracks=tracks)
    if not is_still:
        assert find_still(path) is None
        return
    # Without the plugin FFmpeg is asked for what Pillow does not know.
    by_pillow = find_spec("pillow_heif") or "avif" in (major, *compatible)
    said = "is a picture that cannot be read" if by_pillow else "is not a video or is damaged"
    with pytest.raises(MediaError, match=said):
        find_still(path)


@pytest.mark.parametrize(
    "boxes",
    [
        [b"ftypisom\0\0\0\0iso2", b"avif"],  # of which the second is none of the brands
        [b"freeavif\0\0\0\0avif"],  # which says nothing of brands
    ],
)
def test_brands_stand_in_their_box_alone(tmp_path, boxes):
    path = tmp_path / "file"
    path.write_bytes(b"".join((4 + len(box)).to_bytes(4) + box for box in boxes))
    assert find_still(path) is None


def test_two_letters_are_no_picture(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"P7 is a title")
    assert find_still(tmp_path / "a.mp4") is None


def test_that_memory_is_short_is_no_fault_of_a_picture(tmp_path, monkeypatch):
    def lack(self):
        raise MemoryError

    coloured().save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lack)
    with pytest.raises(MemoryError):
        read_still(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"BM"])
def test_a_picture_that_is_damaged_is_called_one(tmp_path, content):
    path = tmp_path / "a.png"
    if content == b"BM":
        coloured().save(path, format="bmp")
        content = path.read_bytes()[:30]
    path.write_bytes(content + bytes(20))
    with pytest.raises(MediaError, match="is a picture that cannot be read"):
        find_still(path)


def test_an_avif_needs_no_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "find_spec", lambda name: None)
    coloured().save(tmp_path / "a.avif")
    assert find_still(tmp_path / "a.avif") == stills.Still(None)


@pytest.mark.parametrize("form", ["gif", "png"])
def test_a_picture_that_moves_is_a_video(tmp_path, form):
    path = tmp_path / f"moves.{form}"
    coloured().save(path, save_all=True, append_images=[Image.new("RGB", SIZE, "red")])
    assert find_still(path) is None
    assert probe(path).num_frames == 2


@pytest.mark.skipif(not shutil.which("avifenc"), reason="needs the command avifenc")
def test_an_avif_that_moves_is_a_video(tmp_path):
    for name in "abc":
        coloured().save(tmp_path / f"{name}.png")
    path, pictures = tmp_path / "moves.avif", [tmp_path / f"{name}.png" for name in "abc"]
    subprocess.run(["avifenc", "--fps", "5", *pictures, path], check=True, capture_output=True)
    assert probe(path).num_frames == 3


@pytest.mark.parametrize("form", ["webp", "tiff"])
def test_of_several_pictures_the_first_is_taken_and_told(tmp_path, form):
    path = tmp_path / f"several.{form}"
    more = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    coloured().save(path, save_all=True, append_images=more)
    assert_is(path, coloured(), most=12)
    assert read_index(path).remarks == ("holds 3 pictures; the first is taken",)


def test_a_picture_that_carries_another_of_its_kind_is_the_first(tmp_path):
    """As phones write: what is behind belongs to the picture, and the file says so."""
    coloured().save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", SIZE)])
    assert_is(tmp_path / "a.mpo", coloured())
    assert find_still(tmp_path / "a.mpo").remark is None


@pytest.mark.parametrize(
    ("form", "mode"), [("jpeg", "RGB"), ("png", "RGB"), ("ppm", "RGB"), ("ppm", "L")]
)
def test_pictures_one_behind_another_are_a_video(tmp_path, form, mode):
    made = io.BytesIO()
    coloured().convert(mode).save(made, format=form)
    path = tmp_path / "stream"
    path.write_bytes(made.getvalue() * 3)
    assert find_still(path) is None
    path.write_bytes(made.getvalue())
    assert find_still(path) is not None


@pytest.mark.parametrize("form", ["avif", "gif", "jpeg", "png", "tiff", "webp"])
def test_a_picture_cut_off_is_refused(tmp_path, form):
    path = tmp_path / "cut"
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format=form)
    truncate(path, 0.7)
    with pytest.raises(
        MediaError, match=r"cut is a picture that cannot be read \(.+\)\. Open it"
    ) as fault:
        probe(path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "content", [b"BM" + bytes(100), b"P6 text", b"MM\0*", b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_begins_like_a_picture_and_is_none_is_refused(tmp_path, content):
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(
        MediaError, match=r"odd is (not a video or is damaged|a picture that cannot)"
    ):
        probe(tmp_path / "odd")


def test_sixteen_bits_are_shown_in_eight(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    expected = np.stack([np.rint(ramp / 257)] * 3, axis=-1)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 64 48 65535\n" + ramp.astype(">u2").tobytes())
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray((ramp * 30_000).astype(np.int32)).save(tmp_path / "large.tiff")
    for name in ("a.png", "a.tiff", "a.pgm", "float.tiff", "large.tiff"):
        assert_is(tmp_path / name, expected, most=1)


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((48, 64), 2570, np.uint16)).save(tmp_path / "a.png")
    assert_is(tmp_path / "a.png", np.full((48, 64, 3), 10), most=0)


def test_what_is_transparent_is_white(tmp_path):
    clear = coloured().convert("RGBA")
    clear.putalpha(Image.new("L", SIZE, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    clear.paste((0, 0, 0, 51), (32, 0, 64, 24))
    expected = coloured()
    expected.paste("white", (0, 0, 32, 24))
    expected.paste((204, 204, 204), (32, 0, 64, 24))
    for form in ("png", "webp", "tiff"):
        clear.save(tmp_path / form, format=form, **({"lossless": True} if form == "webp" else {}))
        assert_is(tmp_path / form, expected, most=1)
    flat = Image.new("P", SIZE, 1)
    flat.putpalette([0, 0, 0, 200, 40, 40])
    flat.paste(0, (0, 0, 32, 48))
    flat.save(tmp_path / "p.gif", transparency=0)
    flat.save(tmp_path / "p.png", transparency=0)
    expected = Image.new("RGB", SIZE, (200, 40, 40))
    expected.paste("white", (0, 0, 32, 48))
    for name in ("p.gif", "p.png"):
        assert_is(tmp_path / name, expected, most=0)


def test_inks_are_shown_as_colours(tmp_path):
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert_is(tmp_path / "a.jpg", Image.new("RGB", SIZE, "red"), most=3)


def test_a_picture_of_too_many_pixels_is_refused_by_the_processes_that_decode(tmp_path):
    """What a header claims; nothing of it is unpacked."""
    process = DecodeProcess.start(Limits(2**31, 60.0))
    try:
        for side, said in (
            (16_000, "image file is truncated"),
            (17_000, "exceeds limit of 268435456"),
        ):
            coloured().save(tmp_path / "a.bmp")
            content = bytearray((tmp_path / "a.bmp").read_bytes())
            content[18:26] = struct.pack("<ii", side, side)
            (tmp_path / "a.bmp").write_bytes(content)
            with pytest.raises(MediaError, match=said):
                process.make(
                    {"path": str(tmp_path / "a.bmp"), "picture": {"second": 0, "side": 32}}
                )
    finally:
        process.close()


def test_a_video_is_no_still(tmp_path):
    for name in ("a.mp4", "a.avi", "a.mkv", "a.mov"):
        assert find_still(write_video(tmp_path / name, 5)) is None
