"""Which files below a folder are videos, what is passed over, and that this is told."""

import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgl_runtime.errors import MediaError
from dgl_runtime.media.video import probe
from dgl_runtime.media.video_files import (
    VIDEO_EXTENSIONS,
    find_videos,
    is_excluded,
    is_left_out,
    is_video,
    tell,
    videos_below,
)
from tests.helpers.odd_videos import write_video


def make_tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def below(root: Path, exclude: tuple[str, ...] = ()) -> list[str]:
    return [str(path.relative_to(root)) for path in find_videos([root], exclude).videos]


# --- names ----------------------------------------------------------------------------------------


def test_folders_are_searched_and_sorted(tmp_path):
    make_tree(tmp_path, "b/2.MKV", "b/1.mp4", "a.webm", "notes.txt", "._a.mp4", ".trash/old.mp4")
    assert below(tmp_path) == ["a.webm", "b/1.mp4", "b/2.MKV"]


def test_named_files_are_kept_and_doubles_removed(tmp_path):
    make_tree(tmp_path, "a.bin", "d/b.mp4")
    paths = [tmp_path / "a.bin", tmp_path / "d/b.mp4", tmp_path, tmp_path / "d/../a.bin"]
    assert find_videos(paths).videos == paths[:2]


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    with pytest.raises(MediaError, match=r"nowhere does not exist"):
        find_videos([tmp_path / "nowhere"])
    make_tree(tmp_path, "readme.txt", "lost+found/a.mp4")
    with pytest.raises(MediaError) as fault:
        find_videos([tmp_path])
    assert str(fault.value) == (
        f"No video found in {tmp_path}; passed over: 1 .txt, 1 lost+found/. "
        "Name a file itself if it has another extension."
    )
    with pytest.raises(MediaError, match=r"No video found in an empty list\. Name a file"):
        find_videos([])


def test_links_are_followed_once(tmp_path):
    make_tree(tmp_path, "videos/a.mp4", "elsewhere/b.mp4")
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "nothing.mp4").symlink_to(tmp_path / "gone.mp4")
    found = find_videos([tmp_path / "videos"])
    assert [path.name for path in found.videos] == ["a.mp4", "b.mp4"]
    assert found.passed_over == {".mp4": 1}
    below_itself = videos_below(tmp_path / "videos", follow_links=False)
    assert [path.name for path in below_itself] == ["a.mp4"]


def test_each_folder_s_own_videos_come_before_those_further_down(tmp_path):
    make_tree(tmp_path, "a/1.mp4", "2.mp4", "a/b/3.mp4", "a/4.mp4", "c/0.mp4")
    found = [str(path.relative_to(tmp_path)) for path in videos_below(tmp_path)]
    assert found == ["2.mp4", "a/1.mp4", "a/4.mp4", "a/b/3.mp4", "c/0.mp4"]


# --- what systems keep -----------------------------------------------------------------------------

SYSTEM = (
    "#recycle @eaDir $RECYCLE.BIN #snapshot __MACOSX lost+found @Recycle .Trash-1000 .Trashes ~snapshot "
    "@Recently-Snapshot RECYCLER RECYCLED @Snapshot @sharebin @SynoDrive @synologydrive trashbox $Extend "
    "_NAS_Recycle_RAID @GMT-2026.11.28-00.00.00 FOUND.000 @Transcode @tmp .snapshot .@__thumb"
).split()  # fmt: skip


SPACED = [
    "System Volume Information", "Network Recycle Bin 1", "Network Recycle Bin", "Network Trash Folder",
    "Temporary Items",
]  # fmt: skip


@pytest.mark.parametrize("name", [*SYSTEM, *SPACED])
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_folders_of_systems_are_passed_over_at_any_depth_unless_they_are_named(
    tmp_path, name, case
):
    name = case(name)
    make_tree(tmp_path, "a.mp4", f"{name}/b.mp4", f"deep/er/{name}/in/c.mp4", "deep/d.mp4")
    found = find_videos([tmp_path])
    assert [path.name for path in found.videos] == ["a.mp4", "d.mp4"]
    assert found.passed_over == ({} if name.startswith(".") else {f"{name}/": 2})
    assert below(tmp_path / name) == ["b.mp4"]
    inside = tmp_path / "deep" / "er" / name / "in" / "c.mp4"
    assert is_left_out(inside, [tmp_path])
    assert not is_left_out(inside, [tmp_path, tmp_path / "deep" / "er" / name])


def test_what_lies_below_no_folder_is_left_out_of_none(tmp_path):
    assert is_left_out(tmp_path / "videos" / ".x.mp4", [tmp_path / "elsewhere"]) is False
    make_tree(tmp_path, "videos/a.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    assert is_left_out(tmp_path / "videos" / "@tmp" / "b.mp4", [tmp_path / "link"]) is True
    both = [tmp_path / "elsewhere", tmp_path / "videos"]
    assert is_left_out(tmp_path / "videos" / "@tmp" / "b.mp4", both) is True


def test_folders_full_of_links_to_themselves_are_walked_at_once(tmp_path):
    make_tree(tmp_path, "a.mp4", "b/c.mp4")
    for number in range(4):
        (tmp_path / f"link{number}").symlink_to(tmp_path)
        (tmp_path / "b" / f"link{number}").symlink_to(tmp_path / "b")
    assert below(tmp_path) == ["a.mp4", "b/c.mp4"]


def test_names_that_only_resemble_a_system_s_are_searched(tmp_path):
    names = ["recycle", "lost and found", "snapshot", "#1", "@home", "tmp", "FOUND.mp4"]
    make_tree(tmp_path, *(f"{name}/a.mp4" for name in names), "#recycle.mp4", "@eaDir.mp4")
    (tmp_path / "lost+found").touch()  # a file
    assert len(below(tmp_path)) == len(names) + 2


# --- what the user excludes ------------------------------------------------------------------------

TREE = (
    "a.mp4",
    "a.lrv.mp4",
    "raw/b.mp4",
    "raw/deep/c.mp4",
    "d/raw/e.mp4",
    "d/raw.mp4",
    "d/[x].mp4",
)


@pytest.mark.parametrize(
    ("pattern", "gone"),
    {
        "raw": {"raw/b.mp4", "raw/deep/c.mp4", "d/raw/e.mp4"},
        "raw/": {"raw/b.mp4", "raw/deep/c.mp4", "d/raw/e.mp4"},
        "a.mp4/": set(),  # no folder
        "*.lrv.mp4": {"a.lrv.mp4"},
        "raw/*": {"raw/b.mp4", "raw/deep/c.mp4"},
        "./raw/*.mp4": {"raw/b.mp4"},
        "raw*": {"raw/b.mp4", "raw/deep/c.mp4", "d/raw/e.mp4", "d/raw.mp4"},
        "**/e.mp4": {"d/raw/e.mp4"},
        "**/raw/*.mp4": {"raw/b.mp4", "d/raw/e.mp4"},
        "raw/**/c.mp4": {"raw/deep/c.mp4"},
        "d/**": {"d/raw/e.mp4", "d/raw.mp4", "d/[x].mp4"},
        "*/e.mp4": set(),  # a star stays within one name
        "?.mp4": {"a.mp4", "raw/b.mp4", "raw/deep/c.mp4", "d/raw/e.mp4"},
        "[bc].mp4": {"raw/b.mp4", "raw/deep/c.mp4"},
        "[[]x].mp4": {"d/[x].mp4"},
        "A.mp4": set(),  # case counts
        "RAW": set(),
        "{root}/raw/deep": {"raw/deep/c.mp4"},
        "{root}/*/raw": {"d/raw/e.mp4"},
        "/raw": set(),  # the whole path
    }.items(),
)
def test_patterns_leave_out(tmp_path, pattern, gone):
    make_tree(tmp_path, *TREE)
    pattern = pattern.format(root=tmp_path)
    assert set(TREE) - set(below(tmp_path, (pattern,))) == gone
    for name in TREE:  # what pruning asks
        assert is_left_out(tmp_path / name, [tmp_path], (pattern,)) == (name in gone)
    assert set(below(tmp_path, (pattern, "a.mp4"))) == set(TREE) - gone - {"a.mp4"}


def test_a_pattern_means_the_path_below_the_folder_or_the_whole_one_also_through_a_link(
    tmp_path, monkeypatch
):
    make_tree(tmp_path, "videos/raw/a.mp4", "videos/b.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    for pattern in (f"{tmp_path}/link/raw", f"{tmp_path}/videos/raw", "raw/a.mp4"):
        assert below(tmp_path / "link", (pattern,)) == ["b.mp4"]
    assert below(tmp_path / "videos", ("videos", "videos/raw")) == ["b.mp4", "raw/a.mp4"]
    monkeypatch.chdir(tmp_path)
    assert below(Path("videos"), (f"{tmp_path}/videos/raw",)) == ["b.mp4"]


def test_composed_and_decomposed_letters_are_the_same_in_a_pattern(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    for name, pattern in ((composed, decomposed), (decomposed, composed)):
        assert is_excluded(tmp_path, (name,), (pattern,))


# --- extensions and first bytes ----------------------------------------------------------------------

WRITTEN = {
    "mpeg2video": ("m2v", "mp2v", "mpv", "mpg2"),
    "vob": ("vob", "vro", "mod", "evo", "m2p", "mpe", "mpeg", "mpg", "pss", "mpeg2"),
    "mpegts": ("ts", "mts", "m2ts", "m2t", "tod", "tp", "trp", "mpegts"),
    "avi": ("avi", "divx", "xvid"),
    "asf": ("asf", "wmv", "wm", "dvr-ms"),
    "mov": ("qt", "mov", "mj2"),
    "mp4": ("mp4", "m4v", "mp4v", "f4v", "ismv", "insv"),
    "3gp": ("3gp", "3gpp"),
    "3g2": ("3g2", "3gp2"),
    "matroska": ("mkv", "mk3d"),
    "h264": ("h264", "264", "avc", "jsv"),
    "hevc": ("hevc", "h265", "265"),
    "ogg": ("ogv", "ogm", "ogg", "ogx"),
    "rm": ("rm", "rmvb"),
    "dv": ("dv", "dif"),
    "mpeg1video": ("m1v",),
    "yuv4mpegpipe": ("y4m",),
    "gxf": ("gxf",), "mxf": ("mxf",), "nut": ("nut",), "ivf": ("ivf",), "obu": ("obu",), "wtv": ("wtv",),
    "flv": ("flv",), "webm": ("webm",), "mjpeg": ("mjpeg", "mjpg"),
}  # fmt: skip
CODECS = {
    "mpeg2video": "mpeg2video", "vob": "mpeg2video", "mpegts": "mpeg2video", "h264": "libx264", "mov": "mpeg4",
    "hevc": "libx265", "ogg": "libvpx", "rm": "rv10", "dv": "dvvideo", "mpeg1video": "mpeg1video",
    "yuv4mpegpipe": "rawvideo", "gxf": "mpeg2video", "mxf": "mpeg2video", "ivf": "libvpx", "obu": "libsvtav1",
    "wtv": "mpeg2video", "3gp": "h263", "3g2": "h263", "flv": "flv", "webm": "libvpx",
}  # fmt: skip
SIZES = {"dv": (720, 576), "gxf": (720, 576), "3gp": (176, 144), "3g2": (176, 144), "obu": (64, 64)}
UNWRITTEN = {".amv"}  # its sound and pictures must be written in step
MANY_RATES = 25  # frames a second that MPEG-1, MPEG-2 and DV know


def jpeg() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(file, "jpeg")
    return file.getvalue()


def test_every_extension_is_written_by_a_test():
    written = {f".{name}" for names in WRITTEN.values() for name in names}
    assert written == VIDEO_EXTENSIONS - UNWRITTEN


@pytest.mark.parametrize("container", WRITTEN)
def test_well_known_extensions_are_found_and_can_be_read(tmp_path, container):
    first, *others = (tmp_path / f"v.{name}" for name in WRITTEN[container])
    if container == "mjpeg":  # the encoder wants other colours than write_video gives it
        first.write_bytes(8 * jpeg())
    else:
        codec, size = CODECS.get(container, "mpeg4"), SIZES.get(container, (64, 48))
        write_video(first, 8, codec=codec, rate=MANY_RATES, size=size, container=container)
    for other in others:
        other.write_bytes(first.read_bytes())
    assert find_videos([tmp_path]).videos == sorted([first, *others])
    for path in (first, *others):
        assert probe(path).num_frames >= 7


TYPESCRIPT = (
    'import { clip } from "./clip";\n\nexport const length = (a: number) => `${a} s`;\n' * 40
)
TEXTS = {
    "utf-8": TYPESCRIPT.encode(),
    "accents": (TYPESCRIPT + "// Größe, café, 猫\n").encode(),
    "latin-1": (TYPESCRIPT + "// Größe\n").encode("latin-1"),
    "utf-16": TYPESCRIPT.encode("utf-16"),
    "with a zero": TYPESCRIPT.encode() + b"\0",
    "xml": b'\xef\xbb\xbf<?xml version="1.0"?>\r\n<!DOCTYPE TS>\r\n<TS version="2.1"/>\r\n',
    "all G": b"G" * 100 + b"\n",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("extension", ["ts", "TS", "mts", "rm", "tod", "mod"])
def test_text_that_shares_an_extension_is_passed_over(tmp_path, text, extension):
    path = tmp_path / f"a.{extension}"
    path.write_bytes(TEXTS[text])
    write_video(tmp_path / "b.mp4", 8)
    found = find_videos([tmp_path])
    assert [one.name for one in found.videos] == ["b.mp4"]
    assert found.passed_over == {f".{extension.lower()}": 1}
    assert find_videos([path]).videos == [path]  # what is named is always tried


@pytest.mark.parametrize(("controls", "found"), [(10, False), (11, True)])
def test_a_file_with_more_than_one_control_in_a_hundred_is_no_text(tmp_path, controls, found):
    text = b"\t\n\v\f\r\x1b" * 20  # as texts have them
    for control in (b"\0", b"\x08", b"\x0e", b"\x1f", b"\x7f"):
        (tmp_path / "a.ts").write_bytes(
            control * controls + (text + b"a" * 1000)[: 1000 - controls]
        )
        assert is_video(tmp_path / "a.ts") == found


@pytest.mark.parametrize("mark", [b"\x80theora", b"OVP80", b"BBCD"])
@pytest.mark.parametrize("extension", ["ogg", "ogx"])
def test_pictures_in_ogg_are_told_from_sound(tmp_path, mark, extension):
    path = tmp_path / f"a.{extension}"
    for extra, found in ((b"", False), (mark, True)):
        path.write_bytes(b"OggS\0\2" + bytes(22) + extra + bytes(9))
        assert is_video(path) == found


@pytest.mark.parametrize("packet", [188, 192, 204])
@pytest.mark.parametrize("cut", [0, 1, 100, 187])
def test_a_transport_stream_is_found_by_its_packets(tmp_path, packet, cut):
    """Of text in every other byte, so that nothing else tells it."""
    stream = b"".join(b"G" + b"a" * 187 + b"b" * (packet - 188) for _ in range(12))
    (tmp_path / "a.ts").write_bytes(stream[cut:])
    assert is_video(tmp_path / "a.ts")
    (tmp_path / "a.ts").write_bytes(stream[cut : 7 * packet + cut].replace(b"G", b"g", 1))
    assert not is_video(tmp_path / "a.ts")


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut", "empty"])
def test_a_damaged_recording_is_not_passed_over(tmp_path, damage):
    path = write_video(tmp_path / "a.ts", 8, codec="mpeg2video", rate=MANY_RATES)
    noise = np.random.default_rng(3).integers(256, size=9000, dtype=np.uint8).tobytes()
    whole = path.read_bytes()
    path.write_bytes(
        {"zeros": bytes(9000), "noise": noise, "cut": whole[77:], "empty": b""}[damage]
    )
    assert find_videos([tmp_path]).videos == [path]


def test_tracker_music_and_sound_are_no_videos(tmp_path):
    (tmp_path / "song.mod").write_bytes(bytes(1080) + b"M.K." + bytes(5000))
    (tmp_path / "fortran.mod").write_bytes(b"\x1f\x8b\x08" + bytes(range(256)))
    (tmp_path / "sound.ogg").write_bytes(
        b"OggS\0\2" + bytes(22) + b"\x01\x1e\x01vorbis" + bytes(99)
    )
    make_tree(tmp_path, "a.mp4")
    found = find_videos([tmp_path])
    assert [one.name for one in found.videos] == ["a.mp4"]
    assert found.passed_over == {".mod": 2, ".ogg": 1}


def test_a_file_that_may_not_be_read_is_left_to_whoever_reads_it(tmp_path, monkeypatch):
    real = Path.open

    def refuse(path: Path, *given: object) -> object:
        if path.name == "a.ts":
            raise PermissionError(13, "Permission denied")
        return real(path, *given)

    make_tree(tmp_path, "a.ts")
    monkeypatch.setattr(Path, "open", refuse)
    assert find_videos([tmp_path]).videos == [tmp_path / "a.ts"]


# --- what is told -------------------------------------------------------------------------------------


def test_what_is_passed_over_is_counted_by_extension(tmp_path):
    make_tree(
        tmp_path, "v.mp4", "a.txt", "b.TXT", "d/c.txt", "x.jpg", "x.nfo", "README", ".hidden.txt"
    )
    make_tree(tmp_path, "@eaDir/x.jpg", "d/@eaDir/y.mp4")
    found = find_videos([tmp_path])
    assert tell(found.passed_over) == "3 .txt, 2 @eaDir/, 1 .jpg, 1 .nfo, 1 without extension"


def test_a_long_tale_is_cut_and_stays_on_one_line():
    assert tell({}) == ""
    assert tell({".a\nb": 2, ".c": 3}) == "3 .c, 2 .a b"
    many = {f".{number:02}": 1 for number in range(30)}
    assert tell(many) == ", ".join(f"1 .{number:02}" for number in range(20)) + ", 10 others"
