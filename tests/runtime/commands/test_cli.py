import json
import os
import shutil
import signal
import sqlite3
from contextlib import closing

import pytest
from PIL import Image

from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from dgl_runtime.commands.verify import verify
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import as_a_user, failure, invoke, run, start
from tests.helpers.indexed import assert_same, contents
from tests.helpers.odd_videos import damage, write_audio, write_video

LOG_BYTES = 120_000  # of SQLite's log, which some batches fill
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


# ---- dgl-index -------------------------------------------------------------------------------


def test_index_says_what_it_added(bundle, videos, tmp_path):
    arguments = (bundle, videos, "--gallery", tmp_path / "new" / "g", "--window", "1s")
    assert invoke(index, *arguments) == (
        f"3 videos: 9 clips added, 0 already indexed, 0 videos broken. {tmp_path}/new/g holds 9 clips.\n"
    )
    assert "0 clips added, 9 already indexed" in invoke(index, *arguments)


@pytest.mark.parametrize("window", ["1", "1s", "1000ms", " 1 s"])
def test_durations_may_have_units(bundle, videos, tmp_path, window):
    said = invoke(index, bundle, videos, "--gallery", tmp_path / "g", "--window", window)
    assert "9 clips added" in said


def test_each_broken_video_is_one_line_and_the_others_are_indexed(bundle, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "good.mp4")
    (folder / "empty.mp4").touch()
    write_audio(folder / "sound.mp4", "aac")
    (folder / "broken.mp4").write_bytes(b"x" * 999)
    code, out, err = run("index", str(bundle), str(folder), "--gallery", str(tmp_path / "g"))
    assert code == 1
    assert out == (
        f"4 videos: 1 clips added, 0 already indexed, 3 videos broken. {tmp_path}/g holds 1 clips.\n"
    )
    lines = err.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [
        ["Error:", str(folder / name)] for name in ("broken.mp4", "empty.mp4", "sound.mp4")
    ]


BROKEN = {
    "empty": "is empty (0 bytes), expected a video. Copy or download it again.",
    "corrupt": "is not a video or is damaged (Invalid data found when processing input).",
    "cut": "is not a video or is damaged (Invalid data found when processing input).",
    "noise": "cannot be decoded at second",
    "audio": "has no picture stream, only: audio.",
    "text": "is not a video or is damaged",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_video_is_one_line(bundle, tmp_path, kind):
    path = tmp_path / "video.mp4"
    if kind == "audio":
        write_audio(path, "aac")
    elif kind in ("empty", "text", "corrupt"):
        content = {"empty": b"", "text": b"hello\n" * 99, "corrupt": bytes(range(256)) * 99}
        path.write_bytes(content[kind])
    else:
        path = write_video(tmp_path / "video.mp4", 60, codec="libx264", gop=60)
        if kind == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            damage(path, 0.05, 0.6)
    line, out = failure("index", bundle, path, "--gallery", tmp_path / "g")
    assert line.startswith(f"{path} {BROKEN[kind]}")
    assert "1 videos: 0 clips added, 0 already indexed, 1 videos broken" in out


def test_a_video_without_permission_is_one_line(bundle, tmp_path):
    path = write_video(tmp_path / "video.mp4")
    path.chmod(0)
    line, _ = failure("index", bundle, path, "--gallery", tmp_path / "g", prefix=as_a_user())
    assert line == f"{path} may not be read (Permission denied). Change its permissions."


def test_file_names_that_are_no_utf_8_are_indexed_and_printed(bundle, tmp_path):
    path = write_video(tmp_path / os.fsdecode(b"bad\xff\n\x1b[31m.mp4"))
    code, out, err = run("index", str(bundle), str(path), "--gallery", str(tmp_path / "g"))
    assert (code, err) == (0, "")
    code, out, err = run("search", str(tmp_path / "g"), os.fsdecode(b"caf\xe9"), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["hits"][0]["video"] == str(path)
    code, out, err = run("search", str(tmp_path / "g"), os.fsdecode(b"caf\xe9"))
    assert (code, err) == (0, "")
    assert "caf\ufffd" in out


def test_a_folder_without_videos_or_no_folder_at_all_is_one_line(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    line, _ = failure("index", bundle, tmp_path / "empty", "--gallery", tmp_path / "g")
    assert line == (
        f"No video found in {tmp_path}/empty. Name a file itself if it has another extension."
    )
    line, _ = failure("index", bundle, tmp_path / "missing", "--gallery", tmp_path / "g")
    assert line == f"{tmp_path}/missing does not exist. Check the path."
    assert not (tmp_path / "g").exists()


def test_a_gallery_folder_that_cannot_be_one_is_one_line(bundle, videos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line, _ = failure("index", bundle, videos, "--gallery", tmp_path / "notes.txt")
    assert line.startswith(f"gallery {tmp_path}/notes.txt cannot be made")
    line, _ = failure("index", bundle, videos, "--gallery", tmp_path)
    assert line == f"{tmp_path} holds notes.txt, so no gallery is made there. Name an empty one."
    line, _ = failure("index", bundle, videos, "--gallery", tmp_path / ("n" * 300))
    assert "File name too long" in line


def test_a_gallery_that_another_process_writes_is_one_line(bundle, videos, gallery, tmp_path):
    copy = shutil.copytree(gallery, tmp_path / "g")
    with Gallery.open(copy, writable=True):
        line, _ = failure("index", bundle, videos, "--gallery", copy)
        assert invoke(search, copy, "a dog")  # readers are not blocked
    assert line.startswith(f"gallery {copy} has a writer already, and it takes one at a time.")


def test_a_gallery_that_may_not_be_written_is_searched_and_not_added_to(bundle, gallery, tmp_path):
    copy = shutil.copytree(gallery, tmp_path / "g")
    write_video(tmp_path / "new.mp4")
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    code, out, err = run("search", str(copy), "a dog", prefix=as_a_user())
    assert (code, err) == (0, "")
    assert ".mp4" in out
    arguments = (bundle, tmp_path / "new.mp4", "--gallery", copy)
    line, _ = failure("index", *arguments, prefix=as_a_user())
    assert f"gallery {copy}" in line
    assert "ermission" in line
    copy.chmod(0o755)


def test_a_gallery_of_another_bundle_is_one_line(other_bundle, videos, gallery):
    line, _ = failure("index", other_bundle, videos, "--gallery", gallery)
    assert line.startswith(f"gallery {gallery} holds embeddings of bundle ")
    line, _ = failure("search", gallery, "a dog", "--bundle", other_bundle)
    assert line.endswith("Use that bundle, or index into a new folder.")


def test_a_full_disk_is_one_line_and_the_run_can_go_on(bundle, videos, tmp_path):
    """A limit on the size of a file stands for the full disk: writing fails half-way."""
    arguments = (bundle, videos, "--gallery", tmp_path / "g", "--window", "200ms")
    invoke(index, *arguments[:3], tmp_path / "undisturbed", *arguments[4:])
    line, _ = failure("index", *arguments, before=LIMIT.format(size=LOG_BYTES))
    assert line.startswith(f"gallery {tmp_path}/g could not take ")
    assert "It keeps the " in line
    assert line.endswith("it had; make room, then append again.")
    with Gallery.open(tmp_path / "g") as opened:
        committed = len(opened)
    assert 0 < committed < 45
    assert f"{committed} already indexed" in invoke(index, *arguments)
    assert_same(contents(tmp_path / "g"), contents(tmp_path / "undisturbed"))


def test_ctrl_c_is_one_line_and_the_run_can_go_on(bundle, tmp_path):
    """The signal comes at the third batch, from inside: no clock decides what the test sees."""
    write_video(tmp_path / "video.mp4", 60)
    arguments = [str(bundle), str(tmp_path / "video.mp4"), "--gallery", str(tmp_path / "g")]
    arguments += ["--window", "200ms"]
    before = (
        "import os, signal\nfrom dgl_runtime.gallery.gallery import Gallery\ningest = Gallery.ingest\n"
        "def interrupted(self, *batch):\n    ingest(self, *batch)\n"
        "    len(self) < 24 or os.kill(os.getpid(), signal.SIGINT)\n"
        "Gallery.ingest = interrupted"
    )
    code, out, err = run("index", *arguments, before=before)
    assert (code, out, err) == (130, "", "Interrupted.\n")
    assert "6 clips added, 24 already indexed" in invoke(index, *arguments)


# ---- dgl-search ------------------------------------------------------------------------------


def test_search_prints_hits_best_first(gallery):
    lines = invoke(search, gallery, "a dog jumps", "cooking", "--top", 2).splitlines()
    assert lines[0] == "a dog jumps"
    assert lines[3] == "cooking"
    rank, similarity, start, _, end, video = lines[1].split()
    assert rank == "1"
    assert -1 <= float(similarity) <= 1
    assert (start.count(":"), end.count(":")) == (1, 1)
    assert video.endswith(".mp4")
    assert float(lines[2].split()[1]) <= float(similarity)


def test_search_prints_one_json_document(gallery):
    rows = json.loads(invoke(search, gallery, "a dog", "猫 😀", "--json", "--top", 3))
    assert [row["query"] for row in rows] == ["a dog", "猫 😀"]
    for row in rows:
        assert len(row["hits"]) == 3
        assert set(row["hits"][0]) == {
            "video",
            "start_s",
            "end_s",
            "similarity",
            "frame_weights",
            "row",
        }


def test_search_draws_a_contact_sheet(gallery, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    code, out, err = run("search", str(gallery), "a dog", "--json", "--sheet", str(sheet))
    assert (code, err) == (0, f"Contact sheet: {sheet}\n")
    assert len(json.loads(out)[0]["hits"]) == 5
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width >= 720


def test_an_empty_gallery_is_said_to_be_empty(bundle, tmp_path):
    (tmp_path / "broken.mp4").touch()
    failure("index", bundle, tmp_path / "broken.mp4", "--gallery", tmp_path / "g")
    assert "the gallery is empty" in invoke(search, tmp_path / "g", "a dog")


@pytest.mark.parametrize("query", ["", "   "])
def test_an_empty_query_is_one_line(gallery, query):
    line, out = failure("search", gallery, query)
    assert line == "the query is empty. Say in a few words what the moment shows."
    assert out == ""


def test_a_missing_gallery_is_one_line(tmp_path):
    line, _ = failure("search", tmp_path / "missing", "a dog")
    assert line.startswith(f"{tmp_path}/missing is not a gallery: it has no gallery.sqlite.")


def test_a_bundle_that_was_moved_is_one_line(gallery, bundle, tmp_path):
    copy = shutil.copytree(gallery, tmp_path / "g")
    with closing(sqlite3.connect(copy / "gallery.sqlite")) as connection, connection:
        moved = os.fsencode(tmp_path / "moved")
        connection.execute("UPDATE header SET bundle_path = ?", (moved,))
    line, _ = failure("search", copy, "a dog")
    assert line.startswith(f"{tmp_path}/moved is not a bundle")
    assert line.endswith("If the bundle was moved, name it with --bundle.")
    assert invoke(search, copy, "a dog", "--bundle", bundle)


def test_a_sheet_of_a_video_that_is_gone_is_one_line(bundle, tmp_path):
    video = write_video(tmp_path / "video.mp4")
    invoke(index, bundle, video, "--gallery", tmp_path / "g")
    video.unlink()
    line, out = failure("search", tmp_path / "g", "a dog", "--sheet", tmp_path / "sheet.png")
    assert line == f"{video} does not exist. Check the path."
    assert "video.mp4" in out
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_that_cannot_be_written_is_one_line(gallery, tmp_path):
    (tmp_path / "sheet.png").mkdir()
    line, _ = failure("search", gallery, "a dog", "--sheet", tmp_path / "sheet.png")
    assert line == (
        f"cannot read or write {tmp_path}/sheet.png: Is a directory. "
        "Check the path, its permissions and the free space."
    )
    before = LIMIT.format(size=1000)
    line, _ = failure("search", gallery, "a dog", "--sheet", tmp_path / "b.png", before=before)
    assert "File too large" in line


def test_a_reader_that_goes_away_gets_no_traceback(gallery):
    with start("search", str(gallery), *map(str, range(30)), preexec_fn=reset_pipe) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def reset_pipe():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


# ---- dgl-verify ------------------------------------------------------------------------------


def test_verify_says_what_it_checked(bundle):
    first, inputs, *graphs = invoke(verify, bundle, "--engine", "onnx").splitlines()
    assert first == f"{bundle}: 6 files intact."
    assert inputs == "Texts and pictures become the tokens and pixels the model was exported with."
    for line, name in zip(graphs, ("text_encoder", "clip_encoder"), strict=True):
        assert line.startswith(f"{name} in ONNX Runtime ")
        assert "(cpu) (asked for by name): differ by " in line
        assert line.endswith(", cosine 1.000000, from the exporting machine.")


def test_verify_tells_programs_the_same(bundle):
    found = json.loads(invoke(verify, bundle, "--device", "auto", "--json"))
    assert (found["bundle"], found["files"]) == (str(bundle), 6)
    captions, clips = found["graphs"]
    assert (captions["graph"], clips["graph"]) == ("text_encoder", "clip_encoder")
    for graph in (captions, clips):
        assert graph["device"] in ("cpu", "cuda")
        assert graph["engine"] in ("onnx", "openvino")
        assert graph["why"]
        assert graph["max_abs"] <= 1e-4
        assert graph["min_cosine"] == pytest.approx(1, abs=1e-5)


def test_verify_names_a_missing_file(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "golden.npz").unlink()
    line, _ = failure("verify", copy)
    assert line == f"bundle {copy} has no file golden.npz. Export it again."
