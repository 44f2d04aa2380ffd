"""What every gallery does, whatever keeps its clips."""

from contextlib import suppress

import numpy as np
import pytest

from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery.address import is_gallery_at, open_gallery, open_or_create
from dgl_runtime.gallery.clips import Clip, FileState, Known
from tests.helpers.made_galleries import BATCH, MADE, E, F, batch, unit


def clips_in(gallery):
    """Each clip, with its embedding and frame weights."""
    rows = rows_of(gallery)
    found = gallery.look_up(rows)
    embeddings = gallery.embeddings(np.array(rows, np.int64))
    return {
        found[row].clip: (embedding.tolist(), found[row].frame_weights.tolist())
        for row, embedding in zip(rows, embeddings, strict=True)
    }


def rows_of(gallery, where=None):
    query = unit(np.ones((1, E)))
    rows, _ = gallery.search(query, 1000, where)
    return sorted(rows[0].tolist())


def as_written(*numbers):
    return {
        clip: (embedding.tolist(), weights.tolist())
        for number in numbers
        for clip, embedding, weights in zip(*batch(number), strict=True)
    }


def place_file(gallery, path, content, size=1):
    gallery.upsert(FileState(path, size, 10**18), content, 60.0)


def content(number):
    return f"{number:064x}"


def test_what_was_added_is_read_back(gallery, reader):
    for number in range(3):
        gallery.ingest(*batch(number))
    for looked in (gallery, reader()):
        facts = looked.facts
        assert (facts.bundle_id, facts.bundle_path) == ("bundle-a", "/models/a")
        assert (facts.embed_dim, facts.num_frames) == (E, F)
        assert (facts.num_clips, facts.num_videos, len(looked)) == (3 * BATCH, 3, 3 * BATCH)
        assert facts.typical_length_s == pytest.approx(2.5)
        assert clips_in(looked) == as_written(0, 1, 2)
        assert looked.is_newest()


def test_a_gallery_is_there_when_it_was_made(place):
    assert not is_gallery_at(place)
    with pytest.raises(GalleryError, match="is not a gallery"):
        open_gallery(place)
    open_or_create(place, **MADE).close()
    assert is_gallery_at(place)
    with open_or_create(place, **MADE) as again:
        again.ingest(*batch(0))
    with open_or_create(place, **MADE) as again:
        assert len(again) == BATCH


def test_a_gallery_of_another_bundle_is_refused(place, gallery):
    gallery.close()
    for writable in (False, True):
        with pytest.raises(GalleryError, match="holds embeddings of bundle bundle-a, not of other"):
            open_gallery(place, bundle_id="other", writable=writable)
    with pytest.raises(GalleryError, match="holds embeddings of bundle bundle-a, not of other"):
        open_or_create(place, **{**MADE, "bundle_id": "other"})


def test_a_clip_is_the_same_if_content_and_span_are(gallery):
    gallery.ingest(*batch(2))
    spans = [(0.1 * 3, 0.1 * 3 + 2.5), (np.float64(0.1 * 3), 0.1 * 3 + 2.5), (0.3, 2.8)]
    clips = [Clip("elsewhere.mp4", content(2), *span, 60.0) for span in spans]
    assert gallery.missing(clips) == [2]  # 0.1 * 3 is not 0.3
    assert gallery.missing([]) == []
    assert gallery.missing(batch(3, 2)[0]) == [0, 1]


def test_a_clip_written_twice_is_there_once(gallery):
    clips, embeddings, weights = batch(0)
    gallery.ingest(clips, embeddings, weights)
    for again in (clips, clips[2:] + batch(1)[0][:2]):
        with suppress(ValueError):  # where there is one writer, it should have asked
            gallery.ingest(again, embeddings[::-1].copy()[: len(again)], weights[: len(again)])
    found = clips_in(gallery)
    assert {clip: found[clip] for clip in clips} == as_written(0)
    assert len(found) == len(gallery)
    assert len({clip.key for clip in found}) == len(found)


def test_arguments_that_do_not_fit_are_refused(gallery):
    clips, embeddings, weights = batch(0)
    for wrong in (
        (clips, embeddings[:2], weights),
        (clips, 2 * embeddings, weights),
        (clips, embeddings, weights[:, :1]),
    ):
        with pytest.raises(ValueError, match="expected"):
            gallery.ingest(*wrong)
    with pytest.raises(ValueError, match="top_k is 0"):
        gallery.search(embeddings, 0)
    with pytest.raises(ValueError, match="queries"):
        gallery.search(embeddings[:, :2], 1)
    assert len(gallery) == 0
    gallery.ingest([], embeddings[:0], weights[:0])
    assert gallery.search(embeddings, 3)[0].shape == (BATCH, 0)


def test_odd_names_are_stored(gallery):
    clip = Clip("bad\udcff\nname.mp4", "sha", np.float32(0.1), np.float64(2), 3)
    _, embeddings, weights = batch(0, 1)
    gallery.ingest([clip], embeddings, weights)
    (found,) = gallery.look_up(rows_of(gallery)).values()
    assert found.clip == clip
    assert gallery.missing([Clip("v.mp4", "sha", np.float32(0.1), 2, 3)]) == []
    assert [file.path for file in gallery.files()] == ["bad\udcff\nname.mp4"]
    assert rows_of(gallery, "video LIKE '%name.mp4'") == rows_of(gallery)
    gallery.remove(["bad\udcff\nname.mp4"])
    assert len(gallery) == 0


def test_what_is_known_of_files_decides_what_is_opened(gallery):
    place_file(gallery, "/a.mp4", content(0))
    gallery.ingest(*batch(0))
    file = FileState("/a.mp4", 1, 10**18)
    asked = [file, FileState("/b.mp4", 1, 10**18), FileState("/a.mp4", 2, 10**18)]
    assert gallery.plan(asked, "whole") == [Known(content(0), BATCH), Known(), Known()]
    gallery.finish(content(0), "whole")
    gallery.finish(content(0), "whole")
    assert gallery.plan([file], "whole") == [Known(content(0), BATCH, is_complete=True)]
    assert gallery.plan([file], "shots") == [Known(content(0), BATCH)]
    assert gallery.plan([], "whole") == []


def test_a_renamed_file_keeps_its_clips(gallery):
    place_file(gallery, "/old.mp4", content(0))
    gallery.ingest(*batch(0))
    place_file(gallery, "/new.mp4", content(0))
    assert next(iter(gallery.files(content(0)))).path == "/old.mp4"
    gallery.remove(["/old.mp4", "vidéo 0.mp4"])
    assert {clip.video for clip in clips_in(gallery)} == {"/new.mp4"}
    assert (len(gallery), gallery.facts.num_videos) == (BATCH, 1)


def test_a_changed_file_loses_the_clips_it_had(gallery):
    for number in (0, 1):
        place_file(gallery, f"/{number}.mp4", content(number))
        clips, *vectors = batch(number)
        here = [Clip(f"/{number}.mp4", *clip.key, 60.0) for clip in clips]
        gallery.ingest(here, *vectors)
    place_file(gallery, "/0.mp4", content(7), size=2)
    assert {clip.video for clip in clips_in(gallery)} == {"/1.mp4"}
    assert (len(gallery), gallery.facts.num_videos) == (BATCH, 2)
    place_file(gallery, "/1.mp4", content(7))  # now two files of one content
    assert (len(gallery), gallery.facts.num_videos) == (0, 1)
    assert [file.path for file in gallery.files(content(7))] == ["/0.mp4", "/1.mp4"]


def test_what_was_forgotten_can_come_again(gallery):
    gallery.ingest(*batch(0))
    gallery.ingest(*batch(1))
    gallery.finish(content(0), "whole")
    gallery.remove(["vidéo 0.mp4", "never there"])
    assert clips_in(gallery) == as_written(1)
    assert gallery.missing(batch(0)[0]) == list(range(BATCH))
    gallery.compact()
    assert clips_in(gallery) == as_written(1)
    gallery.ingest(*batch(0))
    assert clips_in(gallery) == as_written(0, 1)
    place_file(gallery, "vidéo 0.mp4", content(0))
    (known,) = gallery.plan([FileState("vidéo 0.mp4", 1, 10**18)], "whole")
    assert known == Known(content(0), BATCH)  # what was said of it has gone with it


def test_a_video_that_is_in_another_file_stays(gallery):
    gallery.ingest(*batch(0))
    place_file(gallery, "/copy.mp4", content(0))
    gallery.remove(["vidéo 0.mp4"])
    assert len(gallery) == BATCH
    gallery.remove(["/copy.mp4"])
    assert (len(gallery), gallery.facts.num_videos) == (0, 0)


def test_one_that_is_open_for_reading_takes_no_changes(gallery, reader):
    looked = reader()
    for change in (
        lambda: looked.ingest(*batch(0)),
        lambda: looked.remove(["a"]),
        lambda: looked.finish("a", "whole"),
        lambda: place_file(looked, "/a.mp4", "a"),
        looked.compact,
    ):
        with pytest.raises(GalleryError, match="is not open for writing"):
            change()
    assert len(gallery) == 0


def test_a_closed_gallery_says_so(gallery):
    gallery.close()
    gallery.close()
    with pytest.raises(GalleryError, match=r"is closed\. Open it again"):
        gallery.files()


def test_its_version_grows_with_every_change(gallery):
    versions = [gallery.facts.version]
    gallery.ingest(*batch(0))
    versions.append(gallery.facts.version)
    place_file(gallery, "/a.mp4", content(5))
    versions.append(gallery.facts.version)
    gallery.remove(["/a.mp4"])
    versions.append(gallery.facts.version)
    assert versions == sorted(set(versions))


def test_facts_name_no_password(gallery):
    assert "a-secret-of-tests" not in f"{gallery.facts} {gallery.address} {gallery!r}"
