"""Encrypted files are named as encrypted, with what helps, and no others are."""

import shutil
import struct
import subprocess

import av
import pytest

from dgl_runtime.errors import MediaError
from dgl_runtime.media.boxes import boxes
from dgl_runtime.media.packet_index import read_index
from dgl_runtime.media.video import probe
from tests.helpers.odd_videos import replace_bytes, write_audio, write_video

REFUSED = (
    " has encrypted pictures, which only a player that holds the key can show. Give a copy without "
    "encryption; with the key, ffmpeg -decryption_key makes one."
)


def assert_refused(path):
    with pytest.raises(MediaError) as fault:
        read_index(path)
    assert str(fault.value) == f"{path}{REFUSED}"


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the command ffmpeg")
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_file_that_ffmpeg_encrypted(tmp_path, name):
    made = write_video(tmp_path / "plain.mp4", codec="libx264")
    key, kid = "76a6c65c5ea762046bd749a2e632ccbb", "a7e61c373e219033c21091fa607bf3b8"
    how = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", key, "-encryption_kid", kid]
    command = ["ffmpeg", "-v", "error", "-i", made, "-c", "copy", *how, "-f", "mp4"]
    subprocess.run([*command, tmp_path / name], check=True)
    assert_refused(tmp_path / name)


@pytest.mark.parametrize("kind", [b"encv", b"drmi"])
def test_pictures_of_a_protected_kind(tmp_path, kind):
    path = write_video(tmp_path / "a.mp4", codec="libx264")
    assert_refused(replace_bytes(path, b"avc1", kind))


def test_one_protected_kind_of_several_is_enough(tmp_path):
    """As where the first seconds are clear: the table of kinds has two entries."""
    path = write_video(tmp_path / "a.mp4", codec="libx264")
    content = bytearray(path.read_bytes())
    with path.open("rb") as file:
        place, table = 0, None
        for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
            table = next(box for box in boxes(file, place, table and table.end) if box.kind == kind)
            place = table.start
        (entry,) = boxes(file, table.start + 8, table.end)
    # The clear entry gives up its last boxes for a protected one that holds nothing.
    clear = entry.start - 8
    content[clear : clear + 4] = (entry.end - clear - 8).to_bytes(4)
    content[entry.end - 8 : entry.end] = struct.pack(">I4s", 8, b"encv")
    path.write_bytes(content)
    assert_refused(path)


def test_sound_alone_may_be_encrypted(tmp_path):
    path = write_video(tmp_path / "a.mp4", audio_packets=[b"junk" * 9] * 5)
    assert probe(replace_bytes(path, b"mp4a", b"enca")).num_frames == 20


def element(name, content):
    return bytes.fromhex(name) + bytes([0x80 | len(content)]) + content


def test_a_matroska_track_with_a_key(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(tmp_path / "plain.mkv")
    with av.open(str(tmp_path / "plain.mkv")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.metadata["title"] = "T" * 60
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    key = element("47e1", b"\5") + element("47e2", b"K" * 16)
    how = element("5031", b"\0") + element("5032", b"\1") + element("5033", b"\1")
    said = element("6d80", element("6240", how + element("5035", key)))
    name = element("536e", b"T" * 60)
    said += element("ec", bytes(len(name) - len(said) - 2))
    assert probe(path).num_frames == 20
    assert_refused(replace_bytes(path, name, said))


@pytest.mark.parametrize("length", [188, 192, 204])
def test_a_scrambled_transport_stream(tmp_path, length):
    path = write_video(tmp_path / "a.ts", 60, codec="libx264", pictures=None)
    packets = [path.read_bytes()[at : at + 188] for at in range(0, path.stat().st_size, 188)]
    before, behind = {188: (0, 0), 192: (4, 0), 204: (0, 16)}[length]

    def write(packets):
        path.write_bytes(b"".join(bytes(before) + one + bytes(behind) for one in packets))

    write(packets)
    assert probe(path).num_frames == 60
    scrambled = [
        one[:3] + bytes([one[3] | 0x80]) + one[4:]
        if one[1:3] in (b"\x01\x00", b"\x41\x00")
        else one
        for one in packets
    ]
    write(scrambled)
    assert_refused(path)
    nothing = b"G\x1f\xff\x10" + b"\xff" * 184
    write([one for film in scrambled for one in (nothing, film)])
    assert_refused(path)
    path.write_bytes(path.read_bytes() + bytes(before) + b"G\x01\x00")  # cut off
    assert_refused(path)
    write([*packets, *packets, *scrambled])  # most of it is clear
    assert probe(path).num_frames >= 60


def test_a_transport_stream_of_four_packets_is_not_taken_for_scrambled(tmp_path):
    path = write_video(tmp_path / "a.ts", 1, codec="libx264")
    path.write_bytes(path.read_bytes()[: 4 * 188])
    assert read_index(path).shown.size == 1


def test_a_file_without_pictures_has_none_that_are_encrypted(tmp_path):
    with pytest.raises(MediaError, match="has no picture stream, only: audio"):
        read_index(write_audio(tmp_path / "sound.mka", "aac"))


@pytest.mark.parametrize(
    "key", ["fbb3112223bdd211b4b700a0c955fc6e", "14e68a292226174cb935dae07ee9289c"]
)
def test_a_windows_media_file_with_a_key(tmp_path, key):
    path = write_video(tmp_path / "a.wmv", codec="msmpeg4v3", container="asf")
    assert probe(path).num_frames == 20
    content = bytearray(path.read_bytes())
    size, count = struct.unpack("<QI", content[16:28])
    said = bytes.fromhex(key) + struct.pack("<Q", 40) + bytes(16)
    content[16:28] = struct.pack("<QI", size + len(said), count + 1)
    content[30:30] = said
    path.write_bytes(content)
    assert_refused(path)


def test_boxes_of_every_length(tmp_path):
    path = tmp_path / "boxes"
    path.write_bytes(
        struct.pack(">I4s4s", 12, b"abcd", b"1234")
        + struct.pack(">I4sQ2s", 1, b"long", 18, b"56")
        + struct.pack(">I4s3s", 0, b"last", b"789")
    )
    with path.open("rb") as file:
        found = list(boxes(file))
        assert found == [(b"abcd", 8, 12), (b"long", 28, 30), (b"last", 38, 41)]
        assert list(boxes(file, 12, 30)) == found[1:2]
        assert list(boxes(file, 12, 26)) == []  # of its length, nothing is left for it
        path.write_bytes(struct.pack(">I4s", 7, b"less") + struct.pack(">I4s", 8, b"next"))
    with path.open("rb") as file:
        assert list(boxes(file)) == []
    path.write_bytes(struct.pack(">I4s4s", 99, b"more", b"1234"))
    with path.open("rb") as file:
        assert list(boxes(file)) == [(b"more", 8, 12)]
