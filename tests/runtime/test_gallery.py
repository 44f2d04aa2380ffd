import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dgl_runtime
from dgl_runtime import gallery_files, nearest
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import Clip, Gallery
from dgl_runtime.nearest import ApproximateIndex, exact_top_k

E, F, BATCH = 8, 3, 4
DATA = ("embeddings.f32", "frame_weights.f32", "clips.jsonl")
MADE = {"bundle_id": "bundle-a", "bundle_path": "/models/a", "embed_dim": E, "num_frames": F}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def batch(number, size=BATCH):
    """The same clips, embeddings and frame weights for the same number, in every process."""
    rng = np.random.default_rng(number)
    clips = [
        Clip(f"vidéo {number}.mp4", f"{number:064x}", 0.1 * i, 0.1 * i + 2.5, 60.0)
        for i in range(size)
    ]
    weights = rng.random((size, F), np.float32)
    return clips, unit(rng.standard_normal((size, E))), weights / weights.sum(1, keepdims=True)


def gallery_of(folder, num_batches):
    with Gallery.create(folder, **MADE) as gallery:
        for number in range(num_batches):
            gallery.append(*batch(number))
    return folder


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ("gallery.json", *DATA)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a gallery that took three batches without any trouble."""
    return contents(gallery_of(tmp_path_factory.mktemp("undisturbed"), 3))


def assert_holds(folder, num_batches):
    """Readers and then a writer find exactly these batches, each row once and whole."""
    parts = [batch(number) for number in range(num_batches)]
    for writable in (False, True):
        with Gallery.open(folder, bundle_id="bundle-a", writable=writable) as gallery:
            assert len(gallery) == num_batches * BATCH
            assert list(gallery.clips) == [clip for clips, _, _ in parts for clip in clips]
            for rows, part in ((gallery.embeddings, 1), (gallery.frame_weights, 2)):
                expected = np.concatenate([p[part] for p in parts])
                np.testing.assert_array_equal(rows, expected)


# ---- storing ---------------------------------------------------------------------------------


def test_what_was_appended_is_read_back(tmp_path):
    folder = gallery_of(tmp_path / "new" / "gallery", 3)
    assert_holds(folder, 3)
    with Gallery.open(str(folder)) as gallery:
        assert (gallery.bundle_id, gallery.bundle_path) == ("bundle-a", "/models/a")
        assert (gallery.embed_dim, gallery.num_frames) == (E, F)
        assert gallery.has(f"{2:064x}", 0.1 * 3, 0.1 * 3 + 2.5)
        assert gallery.has(f"{2:064x}", np.float64(0.1 * 3), 0.1 * 3 + 2.5)
        assert not gallery.has(f"{2:064x}", 0.3, 2.8)  # 0.1 * 3 is not 0.3
        assert not gallery.embeddings.flags.writeable
    header = json.loads((folder / "gallery.json").read_text())
    assert header == {"schema_version": 1, **MADE, "num_clips": 12}
    assert (folder / "clips.jsonl").read_bytes().count(b"\n") == 12


def test_a_writer_sees_what_it_appends_and_a_reader_keeps_its_snapshot(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer, Gallery.open(folder) as reader:
        writer.append(*batch(1))
        assert writer.embeddings.shape == (2 * BATCH, E)
        assert writer.has(batch(1)[0][0].content_sha256, 0.0, 2.5)
        assert len(reader) == len(reader.embeddings) == len(reader.clips) == BATCH


def test_numpy_times_and_odd_file_names_are_stored(tmp_path):
    clip = Clip("bad\udcff\nname.mp4", "sha", np.float32(0.1), np.float64(2), 3)
    _, embeddings, weights = batch(0, 1)
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.append([clip], embeddings, weights)
    with Gallery.open(tmp_path) as gallery:
        assert gallery.clips[0] == clip
        assert gallery.has("sha", np.float32(0.1), 2)


def test_an_empty_gallery_and_an_empty_append_are_fine(tmp_path):
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.append([], np.empty((0, E), np.float32), np.empty((0, F), np.float32))
        for approximate in (False, True):
            rows, similarity = gallery.search(batch(0)[1], 5, approximate=approximate)
            assert rows.shape == similarity.shape == (BATCH, 0)
            gallery.build_approximate_index()


# ---- crashes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 4, 17, 32, 33, 0.5, 1.0])
@pytest.mark.parametrize("name", DATA)
def test_a_torn_append_is_ignored_by_readers_and_cut_by_the_next_writer(
    tmp_path, undisturbed, name, extra
):
    folder = gallery_of(tmp_path, 2)
    committed = contents(folder)
    # files are written in the order of DATA: those before ``name`` are whole, the rest untouched
    for file in DATA[: DATA.index(name) + 1]:
        added = undisturbed[file][len(committed[file]) :]
        size = len(added)
        if file == name:
            size = extra if isinstance(extra, int) else int(extra * len(added))
        (folder / file).write_bytes(committed[file] + added[:size])
    (folder / "gallery.json.tmp").write_bytes(b'{"schema_ver')
    with Gallery.open(folder) as reader:
        assert len(reader) == 2 * BATCH
        np.testing.assert_array_equal(reader.search(batch(1)[1], 1)[0][:, 0], [4, 5, 6, 7])
    assert_holds(folder, 2)
    assert contents(folder) == committed
    with Gallery.open(folder, writable=True) as writer:
        writer.append(*batch(2))
    assert contents(folder) == undisturbed


@pytest.mark.parametrize("name", DATA)
def test_garbage_behind_the_last_commit_is_cut(tmp_path, name):
    folder = gallery_of(tmp_path, 2)
    committed = contents(folder)
    with (folder / name).open("ab") as file:
        file.write(b'\x00\xff\n{"video": 3}\n' * 9)
    assert_holds(folder, 2)
    assert contents(folder) == committed


@pytest.mark.parametrize("lost", [1, 4, 31, 32, 33, 100])
@pytest.mark.parametrize("name", DATA)
def test_a_file_that_lost_committed_bytes_is_refused(tmp_path, name, lost):
    folder = gallery_of(tmp_path, 2)
    os.truncate(folder / name, max(0, (folder / name).stat().st_size - lost))
    damaged = contents(folder)
    for writable in (False, True):
        with pytest.raises(GalleryError, match=rf"{name} is damaged: it holds \d+ .*Restore it"):
            Gallery.open(folder, writable=writable)
    assert contents(folder) == damaged


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PowerCut()])
@pytest.mark.parametrize("step", range(4))
def test_an_append_that_stops_at_any_sync_leaves_the_gallery_valid(
    tmp_path, undisturbed, step, error
):
    folder = gallery_of(tmp_path, 2)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == step + 1:
            raise error
        real(descriptor)

    gallery = Gallery.open(folder, writable=True)
    with mock.patch("os.fsync", fsync), pytest.raises((GalleryError, PowerCut)) as caught:
        gallery.append(*batch(2))
    if caught.type is GalleryError:
        assert "could not take 4 clips: [Errno 28] No space left" in str(caught.value)
        assert len(gallery) == len(gallery.embeddings) == 2 * BATCH
        gallery.append(*batch(2))
        gallery.close()
    else:
        gallery.close()
        assert_holds(folder, 2)
        with Gallery.open(folder, writable=True) as again:
            again.append(*batch(2))
    assert contents(folder) == undisturbed


def test_a_commit_that_the_disk_does_not_confirm_is_reported_and_kept(tmp_path):
    with Gallery.create(tmp_path, **MADE) as gallery:
        refuse = mock.patch("os.open", side_effect=OSError(5, "Input/output error"))
        with refuse, pytest.raises(GalleryError, match="did not confirm the last change"):
            gallery.append(*batch(0))
        gallery.append(*batch(1))
    assert_holds(tmp_path, 2)


def test_a_full_disk_is_one_line_and_the_gallery_goes_on(tmp_path):
    folder = gallery_of(tmp_path / "full", 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Gallery.open(folder, writable=True) as gallery:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(contents(folder)["clips.jsonl"]) + 9, hard))
        try:
            with pytest.raises(GalleryError, match="It keeps the 8 it had; make room") as caught:
                gallery.append(*batch(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(gallery.search(batch(1)[1], 1)[0][:, 0], [4, 5, 6, 7])
        gallery.append(*batch(2))
    assert_holds(folder, 3)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_gallery import BATCH, Gallery, batch
with Gallery.open(sys.argv[1], writable=True) as gallery:
    for number in range(len(gallery) // BATCH, int(sys.argv[2])):
        gallery.append(*batch(number))
        print(number, flush=True)
"""


def start_writer(folder, num_batches):
    code = WRITER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(dgl_runtime.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(num_batches)],
        stdout=subprocess.PIPE,
        env=environment,
    )


def test_a_writer_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    folder = gallery_of(tmp_path / "killed", 0)
    moments = random.Random(5)
    for _ in range(6):
        with start_writer(folder, 100_000) as writer:
            writer.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            reported = writer.stdout.read().splitlines()
        with Gallery.open(folder) as gallery:
            assert len(gallery) % BATCH == 0
            num_batches = len(gallery) // BATCH
        if reported:
            assert num_batches in (int(reported[-1]) + 1, int(reported[-1]) + 2)
        assert_holds(folder, num_batches)
    with start_writer(folder, num_batches + 2) as writer:
        writer.stdout.read()
    assert writer.returncode == 0
    assert contents(folder) == contents(gallery_of(tmp_path / "whole", num_batches + 2))


def test_readers_see_whole_batches_while_a_writer_appends(tmp_path):
    folder = gallery_of(tmp_path, 0)
    expected = np.concatenate([batch(number)[1] for number in range(60)])
    sizes = []
    with start_writer(folder, 60) as writer:
        while not sizes or sizes[-1] < len(expected):
            with Gallery.open(folder) as gallery:
                sizes.append(len(gallery))
                assert len(gallery) % BATCH == 0
                np.testing.assert_array_equal(gallery.embeddings, expected[: len(gallery)])
                assert gallery.search(expected[:1], 1)[0].tolist() == [[0] if len(gallery) else []]
            assert writer.poll() in (None, 0)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


# ---- one writer, one bundle, no damage -------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        with pytest.raises(GalleryError, match=r"has a writer already.*open it for reading"):
            Gallery.open(folder, writable=True)
        with start_writer(folder, 5) as other:
            assert other.stdout.read() == b""
        assert other.returncode == 1
        writer.append(*batch(1))
    assert_holds(folder, 2)


def test_a_writer_that_waited_for_the_lock_sees_what_was_appended_meanwhile(tmp_path):
    folder = gallery_of(tmp_path, 1)

    def lock_later(folder, real=gallery_files.writer_lock):
        with mock.patch.object(gallery_files, "writer_lock", real):
            with Gallery.open(folder, writable=True) as other:
                other.append(*batch(1))
        return real(folder)

    with mock.patch.object(gallery_files, "writer_lock", lock_later):
        Gallery.open(folder, writable=True).close()
    assert_holds(folder, 2)


def test_a_failed_open_does_not_keep_the_lock(tmp_path):
    folder = gallery_of(tmp_path, 1)
    good = (folder / "clips.jsonl").read_bytes()
    (folder / "clips.jsonl").write_bytes(b"{}\n")
    with pytest.raises(GalleryError, match="line 1 is no clip"):
        Gallery.open(folder, writable=True)
    (folder / "clips.jsonl").write_bytes(good)
    Gallery.open(folder, writable=True).close()


def test_another_bundle_is_refused(tmp_path):
    folder = gallery_of(tmp_path, 1)
    message = "holds embeddings of bundle bundle-a, not of bundle-b. Use that bundle, or index into"
    with pytest.raises(GalleryError, match=message):
        Gallery.open(folder, bundle_id="bundle-b")


def test_a_folder_in_use_is_not_made_a_gallery(tmp_path):
    folder = gallery_of(tmp_path / "gallery", 1)
    with pytest.raises(GalleryError, match=r"is a gallery already. Open it"):
        Gallery.create(folder, **MADE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(GalleryError, match=r"holds notes.txt, so no gallery is made there"):
        Gallery.create(tmp_path / "other", **MADE)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    (folder / "gallery.json").unlink()
    with pytest.raises(GalleryError, match=r"holds clips.jsonl"):
        Gallery.create(folder, **MADE)
    with pytest.raises(GalleryError, match="cannot be made"):
        Gallery.create(tmp_path / "other" / "notes.txt", **MADE)


def test_a_creation_that_was_killed_can_be_repeated(tmp_path):
    with (
        mock.patch("dgl_runtime.gallery_files.write_header", side_effect=PowerCut),
        pytest.raises(PowerCut),
    ):
        Gallery.create(tmp_path, **MADE)
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path)
    assert_holds(gallery_of(tmp_path, 1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema_version 2, this build reads 1. Index the videos again"),
        ({"num_clips": -1}, "a size is out of range"),
        ({"num_clips": "4"}, "is damaged: expected schema_version, bundle_id,"),
        ({"num_clips": 4.0}, "is damaged: expected"),
        ({"embed_dim": 0}, "a size is out of range"),
        ({"colour": "red"}, "is damaged: expected"),
        ({"num_clips": 5}, r"clips.jsonl is damaged: it holds 4 whole lines, gallery.json says 5"),
        ({"embed_dim": 9}, r"embeddings.f32 is damaged: it holds 128 bytes, its clips need 144"),
        ({"num_frames": 9}, r"frame_weights.f32 is damaged: it holds 48 bytes"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, message):
    folder = gallery_of(tmp_path, 1)
    header = {**json.loads((folder / "gallery.json").read_text()), **change}
    (folder / "gallery.json").write_text(json.dumps(header))
    with pytest.raises(GalleryError, match=message) as caught:
        Gallery.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"3", b"{}", b"\xff\xfe"])
def test_a_header_that_is_not_json_of_ours_is_refused(tmp_path, text):
    folder = gallery_of(tmp_path, 1)
    (folder / "gallery.json").write_bytes(text)
    with pytest.raises(GalleryError, match=r"gallery.json is damaged: it is not the JSON"):
        Gallery.open(folder)


@pytest.mark.parametrize(
    "line", [b"{}", b"no json", b"[1]", b"3", b"\xff", b'{"video": "a", "start_s": "x"}']
)
def test_a_clip_row_that_is_none_is_refused(tmp_path, line):
    folder = gallery_of(tmp_path, 1)
    rows = (folder / "clips.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "clips.jsonl").write_bytes(b"".join([*rows[:2], line + b"\n", *rows[2:]]))
    with pytest.raises(GalleryError, match=r"clips.jsonl is damaged: line 3 is no clip"):
        Gallery.open(folder)


@pytest.mark.parametrize("name", DATA)
def test_a_missing_file_is_named(tmp_path, name):
    folder = gallery_of(tmp_path, 1)
    (folder / name).unlink()
    with pytest.raises(GalleryError, match=f"cannot be opened: .*No such file.*{name}"):
        Gallery.open(folder)


def test_a_folder_that_is_no_gallery_is_refused_and_left_alone(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        for writable in (False, True):
            with pytest.raises(GalleryError, match=r"is not a gallery: it has no gallery.json"):
                Gallery.open(folder, writable=writable)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_append_and_a_closed_gallery_cannot_search(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder) as reader:
        for act in (lambda: reader.append(*batch(1)), reader.build_approximate_index):
            with pytest.raises(GalleryError, match=r"is not open for writing. Open it with"):
                act()
    reader.close()
    with pytest.raises(GalleryError, match=r"is closed. Open it again"):
        reader.search(batch(0)[1], 1)


def test_a_gallery_replaced_behind_its_writer_is_not_written(tmp_path):
    folder = gallery_of(tmp_path, 1)
    with Gallery.open(folder, writable=True) as writer:
        header = (folder / "gallery.json").read_text()
        (folder / "gallery.json").write_text(header.replace("bundle-a", "bundle-b"))
        with pytest.raises(GalleryError, match="was changed behind this writer"):
            writer.append(*batch(1))


# ---- wrong arguments -------------------------------------------------------------------------


def test_clips_that_are_there_already_are_refused(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=r"clip 0.0 to 2.5 s .* would be in gallery .* twice"):
            gallery.append([*clips[:3], clips[0]], embeddings, weights)
        assert len(gallery) == 0
        gallery.append(clips, embeddings, weights)
        moved = [Clip("moved.mp4", *list(vars(clip).values())[1:]) for clip in clips]
        with pytest.raises(ValueError, match=r"twice. Ask has"):
            gallery.append(moved, embeddings, weights)
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e * 1.01, r"embeddings\[\d\] has length 1.01, expected 1. Divide it"),
        (lambda e: e * 0, r"embeddings\[0\] has length 0, expected 1"),
        (lambda e: np.where(np.eye(BATCH, E) == 1, np.nan, e).astype("f4"), "hold a NaN"),
        (lambda e: np.where(np.eye(BATCH, E) == 1, np.inf, e).astype("f4"), "an infinity"),
        (lambda e: e.astype(np.float64), r"are float64 \[4, 8\], expected float32 \[4, 8\]"),
        (lambda e: e.astype(np.float16), r"are float16 \[4, 8\]"),
        (lambda e: e[:, :5], r"are float32 \[4, 5\], expected float32 \[4, 8\]"),
        (lambda e: e[:3], r"are float32 \[3, 8\], expected float32 \[4, 8\]"),
        (lambda e: e[0], r"are float32 \[8\], expected float32 \[4, 8\]"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, change, message):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=message):
            gallery.append(clips, change(embeddings), weights)
        assert len(gallery) == 0


def test_rounding_of_the_norm_is_allowed(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        gallery.append(clips, embeddings * np.float32(1.0009), weights)


def test_frame_weights_and_queries_that_do_not_fit_are_refused(tmp_path):
    clips, embeddings, weights = batch(0)
    with Gallery.create(tmp_path, **MADE) as gallery:
        with pytest.raises(ValueError, match=r"frame_weights are float32 \[4, 2\], expected"):
            gallery.append(clips, embeddings, weights[:, :2])
        with pytest.raises(ValueError, match="frame_weights hold a NaN"):
            gallery.append(clips, embeddings, weights * np.float32(np.nan))
        with pytest.raises(
            ValueError, match=r"queries are float32 \[8\], expected float32 \[Q, 8\]"
        ):
            gallery.search(embeddings[0], 1)
        with pytest.raises(ValueError, match=r"queries\[\d\] has length 2"):
            gallery.search(embeddings * 2, 1)
        with pytest.raises(ValueError, match="top_k is 0, expected at least 1"):
            gallery.search(embeddings, 0)


@pytest.mark.parametrize("change", [{"bundle_id": ""}, {"embed_dim": 0}, {"num_frames": 0}])
def test_a_gallery_without_size_or_bundle_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="expected a text and two numbers above 0"):
        Gallery.create(tmp_path / "new", **{**MADE, **change})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "values",
    [
        ("v", "s", 2.0, 2.0, 9.0),
        ("v", "s", -0.1, 2.0, 9.0),
        ("v", "s", float("nan"), 2.0, 9.0),
        ("v", "s", 0.0, float("inf"), 9.0),
        ("v", "s", 0.0, 2.0, 0.0),
        ("", "s", 0.0, 2.0, 9.0),
        ("v", "", 0.0, 2.0, 9.0),
        (Path("v"), "s", 0.0, 2.0, 9.0),
    ],
)
def test_a_clip_without_a_real_span_or_name_is_refused(values):
    with pytest.raises(ValueError, match=r"expected 0 <= start_s < end_s|as texts, got"):
        Clip(*values)


# ---- exact search ----------------------------------------------------------------------------


def brute_force(embeddings, queries, top_k):
    similarity = (queries[:, None].astype(np.float64) * embeddings).sum(2).astype(np.float32)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
    return rows, np.take_along_axis(similarity, rows, 1)


@st.composite
def vectors(draw):
    """Embeddings with many equal ones, and queries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_clips = draw(st.integers(1, 40))
    different = unit(rng.standard_normal((draw(st.integers(1, 40)), 16)))
    embeddings = different[rng.integers(0, len(different), num_clips)]
    return embeddings, unit(rng.standard_normal((draw(st.integers(1, 5)), 16)))


def searched(embeddings, queries, top_k, rows_at_once, queries_at_once=2):
    with (
        mock.patch.object(nearest, "_ROW_BLOCK", rows_at_once),
        mock.patch.object(nearest, "_QUERY_BLOCK", queries_at_once),
    ):
        return exact_top_k(embeddings, queries, top_k)


@given(vectors(), st.integers(1, 45), st.integers(1, 45))
def test_exact_search_equals_brute_force_whatever_the_block_size(case, top_k, rows_at_once):
    rows, similarity = searched(*case, top_k, rows_at_once)
    expected_rows, expected_similarity = brute_force(*case, top_k)
    np.testing.assert_array_equal(similarity, expected_similarity)
    np.testing.assert_array_equal(rows, expected_rows)
    assert (rows.dtype, similarity.dtype) == (np.int64, np.float32)


@given(vectors(), st.integers(1, 44), st.integers(1, 45))
def test_top_k_is_a_prefix_of_top_k_plus_one(case, top_k, rows_at_once):
    fewer = searched(*case, top_k, rows_at_once)
    more = searched(*case, top_k + 1, rows_at_once)
    for short, long in zip(fewer, more, strict=True):
        np.testing.assert_array_equal(short, long[:, :top_k])


@given(vectors(), st.integers(1, 45), st.randoms(use_true_random=False))
def test_a_permutation_of_the_gallery_permutes_the_results(case, top_k, shuffle):
    embeddings, queries = case
    order = list(range(len(embeddings)))
    shuffle.shuffle(order)
    rows, similarity = searched(embeddings, queries, top_k, 7)
    permuted, permuted_similarity = searched(embeddings[order], queries, top_k, 7)
    np.testing.assert_array_equal(permuted_similarity, similarity)
    np.testing.assert_array_equal(embeddings[order][permuted], embeddings[rows])


@given(vectors(), st.integers(1, 45))
def test_a_query_finds_the_same_alone_and_in_a_batch(case, top_k):
    embeddings, queries = case
    rows, similarity = exact_top_k(embeddings, queries, top_k)
    for number in range(len(queries)):
        alone, alone_similarity = exact_top_k(embeddings, queries[number : number + 1], top_k)
        np.testing.assert_array_equal(alone[0], rows[number])
        np.testing.assert_array_equal(alone_similarity[0], similarity[number])


def test_more_hits_than_clips_gives_all_clips(tmp_path):
    with Gallery.open(gallery_of(tmp_path, 2)) as gallery:
        rows, _ = gallery.search(batch(0)[1][:1], 100)
    np.testing.assert_array_equal(np.sort(rows), [np.arange(8)])


# ---- approximate search ----------------------------------------------------------------------


def clustered(num_clips, seed=0):
    centres = np.random.default_rng(1).standard_normal((50, E))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(0, 50, num_clips)] + 0.5 * rng.standard_normal((num_clips, E)))


def fill(gallery, embeddings):
    first = len(gallery)
    clips = [Clip("v.mp4", "sha", first + i, first + i + 1, 1e6) for i in range(len(embeddings))]
    gallery.append(clips, embeddings, np.ones((len(embeddings), F), np.float32))


def recall(found, expected):
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    return sum(hits) / expected.size


@pytest.fixture
def indexed(tmp_path):
    with Gallery.create(tmp_path / "indexed", **MADE) as gallery:
        fill(gallery, clustered(2000))
        gallery.build_approximate_index(threads=1)
        yield gallery


def test_approximate_hits_are_nearly_complete_and_their_similarities_exact(indexed):
    queries = clustered(50, seed=3)
    exact, exact_similarity = indexed.search(queries, 10)
    rows, similarity = indexed.search(queries, 10, approximate=True)
    assert recall(rows, exact) > 0.98
    for query in range(len(queries)):
        known = dict(zip(exact[query], exact_similarity[query], strict=True))
        for row, value in zip(rows[query], similarity[query], strict=True):
            assert known.get(row, value) == value
        order = np.lexsort((rows[query], -similarity[query]))
        np.testing.assert_array_equal(order, np.arange(10))


def test_clips_appended_after_the_index_are_found_exactly(indexed):
    fill(indexed, clustered(30, seed=4))
    queries = clustered(30, seed=4)
    for reopened in (indexed, Gallery.open(indexed._folder)):
        rows, similarity = reopened.search(queries, 1, approximate=True)
        np.testing.assert_array_equal(rows[:, 0], np.arange(2000, 2030))
        np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_building_again_extends_the_index(indexed):
    fill(indexed, clustered(100, seed=4))
    with mock.patch.object(ApproximateIndex, "add", autospec=True) as add:
        indexed.build_approximate_index()
    assert len(add.call_args.args[0]) == 2000  # what is there is loaded, not built again
    indexed.build_approximate_index(threads=1)
    index = ApproximateIndex.open(indexed._folder / "clips.usearch", indexed.embeddings)
    assert len(index) == 2100
    rows, _ = indexed.search(clustered(100, seed=4), 10, approximate=True)
    assert recall(rows, indexed.search(clustered(100, seed=4), 10)[0]) > 0.98


def test_all_clips_are_returned_when_more_are_asked_for_than_the_index_gives(indexed):
    queries = clustered(2, seed=3)
    for top_k in (1999, 2000, 5000):
        rows, similarity = indexed.search(queries, top_k, approximate=True)
        expected = indexed.search(queries, top_k)
        np.testing.assert_array_equal(similarity.shape, (2, min(top_k, 2000)))
        assert recall(rows, expected[0]) > 0.98
        assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_a_query_to_which_the_graph_gives_too_little_is_searched_exactly(indexed):
    queries = clustered(3, seed=3)
    indexed.search(queries, 10, approximate=True)
    few = SimpleNamespace(keys=np.arange(9, dtype=np.uint64))
    with mock.patch.object(type(indexed._index._index), "search", return_value=few):
        rows, _ = indexed.search(queries, 10, approximate=True)
        np.testing.assert_array_equal(rows, indexed.search(queries, 10)[0])


def test_without_an_index_approximate_search_is_exact(tmp_path):
    with Gallery.open(gallery_of(tmp_path, 3)) as gallery:
        for exact, found in zip(
            gallery.search(batch(0)[1], 5),
            gallery.search(batch(0)[1], 5, approximate=True),
            strict=True,
        ):
            np.testing.assert_array_equal(found, exact)


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: b"garbage" * 99,
        flipped,
    ],
)
def test_a_damaged_index_is_refused_and_built_again(indexed, damage):
    path = indexed._folder / "clips.usearch"
    path.write_bytes(damage(path.read_bytes()))
    queries = clustered(5, seed=3)
    with Gallery.open(indexed._folder) as reader:
        with pytest.raises(GalleryError, match=r"does not fit the gallery: .* Build it again") as e:
            reader.search(queries, 10, approximate=True)
        assert "\n" not in str(e.value)
        assert reader.search(queries, 10)[0].shape == (5, 10)
    indexed.build_approximate_index(threads=1)
    assert indexed.search(queries, 10, approximate=True)[0].shape == (5, 10)


def test_an_index_of_other_embeddings_is_refused(indexed, tmp_path):
    path = indexed._folder / "clips.usearch"
    theirs = path.read_bytes()
    with Gallery.create(tmp_path / "other", **MADE) as other:
        embeddings = clustered(2000, seed=9)
        fill(other, embeddings)
        (tmp_path / "other" / "clips.usearch").write_bytes(theirs)
        with pytest.raises(GalleryError, match="row 0 differs from the gallery's embedding"):
            other.search(clustered(1), 1, approximate=True)
        other.build_approximate_index(threads=1)
        rows, _ = other.search(embeddings[:20], 1, approximate=True)
        np.testing.assert_array_equal(rows[:, 0], np.arange(20))
    with Gallery.create(tmp_path / "smaller", **MADE) as smaller:
        fill(smaller, clustered(1000))
        (tmp_path / "smaller" / "clips.usearch").write_bytes(theirs)
        with pytest.raises(GalleryError, match="covers 2000 clips, the gallery opened here 1000"):
            smaller.search(clustered(1), 1, approximate=True)
    with Gallery.create(tmp_path / "wider", **{**MADE, "embed_dim": 9}) as wider:
        (tmp_path / "wider" / "clips.usearch").write_bytes(theirs)
        with pytest.raises(GalleryError, match="its vectors are not 9 numbers wide"):
            wider.search(np.eye(9, dtype=np.float32), 1, approximate=True)


def test_a_sealed_file_that_usearch_cannot_read_is_refused(tmp_path):
    import hashlib

    path = tmp_path / "clips.usearch"
    path.write_bytes(b"x" * 500 + b"dgl-ann1" + hashlib.sha256(b"x" * 500).digest())
    with pytest.raises(GalleryError, match="USearch cannot read it"):
        ApproximateIndex.open(path, clustered(10))


def test_an_index_that_cannot_be_written_leaves_the_old_one(indexed):
    fill(indexed, clustered(10, seed=4))
    before = (indexed._folder / "clips.usearch").read_bytes()
    refuse = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with (
        refuse,
        pytest.raises(GalleryError, match=r"cannot be written: .*No space left.*Make room"),
    ):
        indexed.build_approximate_index()
    assert (indexed._folder / "clips.usearch").read_bytes() == before
