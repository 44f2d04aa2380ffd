"""What a run of indexing asks of the gallery and tells it, and in which thread."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgl_runtime.decoding.read_video import Done, Job, ReadHere, Seen
from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder
from dgl_runtime.gallery.folder import EMBEDDINGS, path_of
from dgl_runtime.gallery.gallery import Clip, FileState, Gallery
from dgl_runtime.indexing.index import index_videos
from dgl_runtime.indexing.ledger import Ledger
from dgl_runtime.indexing.sought import look_for_videos
from dgl_runtime.media.segmentation import Segmentation
from dgl_runtime.media.windows import Span
from tests.helpers.indexed import add, assert_same, contents
from tests.helpers.made_galleries import BATCH, MADE, E, F, batch, unit
from tests.helpers.odd_videos import write_video

WINDOWS = Segmentation(1.0)
SPANS = [Span(0.0, 1.0), Span(1.0, 2.0)]
CONTENT = "a" * 64


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", **MADE) as opened:
        yield opened


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a video")
    return path


def seen_of(path):
    return Seen(path, CONTENT, 9.0, tuple(SPANS))


def clips_of(path):
    return [Clip(str(path), CONTENT, span.start_s, span.end_s, 9.0) for span in SPANS]


def encoded(count):
    rng = np.random.default_rng(0)
    return ClipEmbeddings(unit(rng.standard_normal((count, E))), np.ones((count, F), np.float32))


def is_complete(gallery, path):
    return gallery.plan([FileState.of(path)], str(WINDOWS))[0].is_complete


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_video_counts_as_indexed_only_when_all_of_its_clips_are_there(gallery, video, kept):
    """As when a copy that was to bring the clips could not be read."""
    with Ledger(gallery, WINDOWS) as ledger:
        assert ledger.plan([video]) == [Job(video)]
        assert list(ledger.choose(seen_of(video))) == [0, 1]
        ledger.ingest(clips_of(video)[:kept], encoded(kept))
        ledger.finish(Done(video, CONTENT, seen_of(video), None))
        assert (ledger.added, ledger.present) == (kept, 0)
    assert is_complete(gallery, video) == (kept == 2)
    with Ledger(gallery, WINDOWS) as again:
        assert again.plan([video]) == ([] if kept == 2 else [Job(video, CONTENT)])
        assert again.present == (2 if kept == 2 else 0)


def test_a_video_with_a_fault_is_not_indexed_to_its_end(gallery, video):
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video])
        ledger.choose(seen_of(video))
        ledger.ingest(clips_of(video), encoded(2))
        ledger.finish(Done(video, CONTENT, seen_of(video), "it broke off"))
        assert [one.reason for one in ledger.broken] == ["it broke off"]
    assert not is_complete(gallery, video)


def test_clips_that_another_file_will_bring_are_not_read_twice(gallery, video, tmp_path):
    copy = tmp_path / "b.mp4"
    copy.write_bytes(b"a video")
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video, copy])
        assert list(ledger.choose(seen_of(video))) == [0, 1]
        assert list(ledger.choose(seen_of(copy))) == []
        ledger.finish(Done(video, CONTENT, seen_of(video), "it broke off"))  # so they do not come
        assert list(ledger.choose(seen_of(copy))) == [0, 1]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_copy_that_is_through_first_leaves_the_clips_to_the_file_that_brings_them(
    gallery, video, tmp_path, is_lost
):
    """And where that one crashed its decoder, neither counts as indexed; the next run reads them."""
    copies = [tmp_path / "b.mp4", tmp_path / "c.mp4"]
    for copy in copies:
        copy.write_bytes(b"a video")
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video, *copies])
        ledger.choose(seen_of(video))
        for copy in copies:
            assert list(ledger.choose(seen_of(copy))) == []
            ledger.finish(Done(copy, CONTENT, seen_of(copy), None))
        ledger.ingest([] if is_lost else clips_of(video), encoded(0 if is_lost else 2))
        fault = "its decoder crashed" if is_lost else None
        ledger.finish(Done(video, CONTENT, seen_of(video), fault))
        assert len(ledger.broken) == is_lost
    assert len(gallery) == (0 if is_lost else 2)
    with Ledger(gallery, WINDOWS) as again:
        left = [Job(path, CONTENT) for path in (video, *copies)] if is_lost else []
        assert again.plan([video, *copies]) == left
        if is_lost:
            assert list(again.choose(seen_of(copies[0]))) == [0, 1]


def test_a_file_that_is_gone_is_left_to_the_reader(gallery, tmp_path):
    gone = tmp_path / "gone.mp4"
    with Ledger(gallery, WINDOWS) as ledger:
        assert ledger.plan([gone]) == [Job(gone)]
        ledger.finish(Done(gone, None, None, f"{gone} does not exist.", is_unreadable=True))
        assert [Path(one.video) for one in ledger.broken] == [gone]


def test_a_file_that_comes_after_the_plan_is_taken_and_not_called_changed(gallery, tmp_path):
    late = tmp_path / "late.mp4"
    with Ledger(gallery, WINDOWS) as ledger:
        assert ledger.plan([late]) == [Job(late)]
        late.write_bytes(b"a video")
        assert list(ledger.choose(seen_of(late))) == [0, 1]
        ledger.ingest(clips_of(late), encoded(2))
        ledger.finish(Done(late, CONTENT, seen_of(late), None))
        assert (ledger.added, ledger.broken) == (2, [])


@pytest.mark.parametrize("is_unreadable", [True, False])
def test_what_a_file_held_goes_only_where_the_file_itself_is_broken(gallery, video, is_unreadable):
    """And not where the machine had no memory to read it."""
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video])
        ledger.choose(seen_of(video))
        ledger.ingest(clips_of(video), encoded(2))
        ledger.finish(Done(video, CONTENT, seen_of(video), None))
    video.write_bytes(b"no video")
    with Ledger(gallery, WINDOWS) as ledger:
        assert ledger.plan([video]) == [Job(video)]
        ledger.finish(Done(video, None, None, "it was lost", is_unreadable=is_unreadable))
    assert len(gallery) == len(gallery.files(CONTENT)) * 2 == (0 if is_unreadable else 2)


def test_a_link_to_what_could_not_be_read_drops_nothing(gallery, video):
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video])
        ledger.choose(seen_of(video))
        ledger.ingest(clips_of(video), encoded(2))
        ledger.finish(Done(video, CONTENT, seen_of(video), None))
    video.symlink_to(video.rename(video.with_name("b.mp4")))
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([video])
        ledger.finish(Done(video, None, None, "it was lost"))
        ledger.close_run(look_for_videos([video], (), prune=False))
    assert len(gallery) == 2


def test_room_that_cannot_be_taken_back_is_told(gallery, tmp_path):
    gallery.ingest(*batch(0))
    gallery.ingest(*batch(1))
    gallery.remove([batch(0)[0][0].video])
    path_of(gallery.folder, EMBEDDINGS, 1).mkdir()  # in the place of the file that is to be written
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.close_run(look_for_videos([tmp_path], (), prune=True))
    (told,) = ledger.broken
    assert told.video == str(gallery.folder)
    assert "could not be compacted: [Errno 21] Is a directory" in told.reason
    assert len(gallery) == BATCH


def test_files_are_placed_under_their_whole_names_and_remarks_name_them(
    gallery, video, monkeypatch
):
    monkeypatch.chdir(video.parent)
    seen = replace(seen_of(Path("a.mp4")), remarks=("has two clocks",))
    with Ledger(gallery, WINDOWS) as ledger:
        ledger.plan([Path("a.mp4")])
        ledger.choose(seen)
        ledger.finish(Done(Path("a.mp4"), CONTENT, seen, None))
        assert ledger.remarks == ["a.mp4 has two clocks."]
    assert [file.path for file in gallery.files()] == [str(video)]


def test_what_two_threads_want_is_done_one_after_the_other(gallery, video, monkeypatch):
    begun, go_on, done = threading.Event(), threading.Event(), []
    plan, missing = Gallery.plan, Gallery.missing

    def plan_later(*given):
        begun.set()
        assert go_on.wait(60)
        done.append("plan")
        return plan(*given)

    monkeypatch.setattr(Gallery, "plan", plan_later)
    monkeypatch.setattr(
        Gallery, "missing", lambda *given: done.append("missing") or missing(*given)
    )
    with Ledger(gallery, WINDOWS) as ledger, ThreadPoolExecutor(2) as both:
        both.submit(ledger.plan, [video])
        assert begun.wait(60)
        other = both.submit(ledger.choose, seen_of(video))
        while not other.done() and not ledger._thread._work_queue.qsize():
            time.sleep(0.01)
        go_on.set()
    assert done == ["plan", "missing"]
    assert not [one for one in threading.enumerate() if one.name.startswith("gallery")]


@pytest.fixture
def writers(monkeypatch):
    """Threads that called a gallery's verbs while it was written, by verb."""
    called = {}
    for name in ("plan", "missing", "files", "upsert", "ingest", "finish", "remove", "compact"):
        real = getattr(Gallery, name)

        def wrapper(self, *given, name=name, real=real, **named):
            called.setdefault(name, set()).add(threading.current_thread().name)
            return real(self, *given, **named)

        monkeypatch.setattr(Gallery, name, wrapper)
    return called


def test_one_thread_asks_and_writes_the_gallery(bundle, tmp_path, writers):
    folder, gallery = tmp_path / "videos", tmp_path / "gallery"
    for number in range(3):
        write_video(folder / f"{number}.mp4", 40 + number)
    add(bundle, gallery, folder, window_s=0.5, jobs=2)
    (folder / "0.mp4").rename(folder / "3.mp4")
    (folder / "1.mp4").unlink()
    write_video(folder / "2.mp4", 50)
    add(bundle, gallery, folder, window_s=0.5, jobs=2, prune=True)
    assert writers.keys() >= {"plan", "missing", "upsert", "ingest", "finish", "remove", "compact"}
    assert set().union(*writers.values()) == {"gallery_0"}


def index_here(bundle, gallery, paths, segmentation, reading=ReadHere, **options):
    """Index without processes."""
    encoder = Encoder(bundle, threads=1)
    with Gallery.create(
        gallery,
        bundle_id=encoder.bundle.id,
        bundle_path=bundle,
        embed_dim=encoder.embed_dim,
        num_frames=encoder.num_frames,
    ) as opened:
        reader = reading(segmentation, encoder.input_spec.frames)
        sought = look_for_videos(paths, (), prune=False)
        return index_videos(encoder, opened, sought, segmentation, reader, **options)


def test_videos_are_indexed_without_processes_too(bundle, tmp_path):
    folder = tmp_path / "videos"
    for number in range(3):
        write_video(folder / f"{number}.mp4", 40 + number)
    (folder / "broken.mp4").write_bytes(b"no video")
    apart = add(bundle, tmp_path / "apart", folder, window_s=0.5)
    here = index_here(bundle, tmp_path / "here", [folder], Segmentation(0.5), batch=3)
    assert (here.clips_added, here.broken) == (apart.clips_added, apart.broken)
    assert len(here.broken) == 1
    assert_same(contents(tmp_path / "here"), contents(tmp_path / "apart"))


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_clips_are_encoded_in_batches_of_the_size_asked_for(bundle, tmp_path, monkeypatch, batch):
    """More than a reader gives at once, too: the first batch waits until all has been read."""
    all_read, sizes, real = threading.Event(), [], Encoder.embed_clips

    class Telling(ReadHere):
        def read(self, *given):
            yield from super().read(*given)
            all_read.set()

    def embed(self, frames):
        assert all_read.wait(60)
        sizes.append(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Encoder, "embed_clips", embed)
    video = write_video(tmp_path / "a.mp4", 250)
    report = index_here(bundle, tmp_path / "g", [video], Segmentation(0.5), Telling, batch=batch)
    assert report.clips_added == sum(sizes) == 50
    assert max(sizes) == batch


def test_a_batch_of_nothing_is_refused(bundle, tmp_path):
    with pytest.raises(ValueError, match="batch is 0, expected 1 clip or more"):
        add(bundle, tmp_path / "gallery", tmp_path, batch=0)
