"""Snapshots of galleries: followed while somebody writes, and open for as long as somebody looks."""

from pathlib import Path

import pytest

from dgl_runtime import Retriever
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.errors import GalleryError
from dgl_runtime.gallery import local_vector_store
from dgl_runtime.gallery.gallery import Gallery
from dgl_runtime.search.find import bank_hubness
from dgl_runtime.serve import galleries
from dgl_runtime.serve.galleries import ServedGallery, names_of
from tests.helpers.odd_videos import write_video


@pytest.fixture
def served(bundle, own_library):
    made = ServedGallery("holiday", own_library, Encoder(bundle, threads=1))
    yield made
    made.close()


def add_a_video(served, folder, name, frames=30):
    with Retriever(served.encoder.bundle.folder, served.place, threads=1) as writer:
        writer.add_videos([write_video(folder / name, frames)])


def is_closed(gallery):
    try:
        gallery.files()
    except GalleryError:
        return True
    return False


def test_a_snapshot_is_taken_anew_only_when_the_gallery_has_changed(served, tmp_path):
    assert served.refresh()
    with served.look() as first:
        assert first.gallery.facts.num_videos == 4
    assert not served.refresh()
    with served.look() as same:
        assert same is first
    add_a_video(served, tmp_path, "new.mp4")
    assert served.refresh()
    with served.look() as second:
        assert second.gallery.facts.num_videos == 5
    assert is_closed(first.gallery)
    assert not served.refresh()


def test_whoever_looks_at_an_old_snapshot_finishes_with_it(served, tmp_path):
    served.refresh()
    with served.look() as first:
        with served.look() as again:
            assert again is first
            add_a_video(served, tmp_path, "new.mp4")
            assert served.refresh()
            assert not is_closed(first.gallery)
        assert not is_closed(first.gallery)  # one of two still looks
        with served.look() as second:
            assert second is not first
        assert not is_closed(second.gallery)  # it is the newest
        assert first.gallery.facts.num_videos == 4
    assert is_closed(first.gallery)


def test_one_that_failed_while_it_looked_has_gone(served, tmp_path):
    served.refresh()
    with pytest.raises(ValueError, match="no"), served.look() as first:
        raise ValueError("no")
    add_a_video(served, tmp_path, "new.mp4")
    served.refresh()
    assert is_closed(first.gallery)


def test_a_gallery_that_cannot_be_served_is_let_go_of(served, monkeypatch):
    opened = []

    def spoil(gallery):
        opened.append(gallery)
        raise GalleryError("its graph is damaged.")

    monkeypatch.setattr(Gallery, "warm", spoil)
    with pytest.raises(GalleryError, match="graph is damaged"):
        served.refresh()
    assert is_closed(*opened)


def test_a_closed_gallery_says_so(served):
    with pytest.raises(GalleryError, match="gallery holiday is closed"), served.look():
        pass
    served.refresh()
    with served.look() as snapshot:
        pass
    served.close()
    assert is_closed(snapshot.gallery)
    with pytest.raises(GalleryError, match="gallery holiday is closed"), served.look():
        pass
    served.close()  # again does no harm
    assert served.refresh()


def test_a_gallery_of_another_bundle_is_refused(other_bundle, library):
    served = ServedGallery("holiday", library / "gallery", Encoder(other_bundle, threads=1))
    with pytest.raises(GalleryError):
        served.refresh()


def test_the_querybank_is_that_of_the_gallery(bundle, library):
    encoder = Encoder(bundle, threads=1)
    bank = ["a dog", "a cat"]
    served = ServedGallery("holiday", library / "gallery", encoder, bank)
    served.refresh()
    with served.look() as snapshot, Gallery.open(library / "gallery") as gallery:
        expected = bank_hubness(gallery, encoder.embed_texts(bank))
        assert snapshot.bank_hubness.tolist() == expected.tolist()
    served.close()
    served.bank = ()
    served.refresh()
    with served.look() as snapshot:
        assert snapshot.bank_hubness is None
    served.close()


@pytest.mark.parametrize("more", [0, 1])
def test_the_graph_of_a_large_gallery_is_looked_at_before_anybody_searches(
    served, monkeypatch, more
):
    with Gallery.open(served.place) as gallery:
        monkeypatch.setattr(local_vector_store, "APPROXIMATE_PAYS_FROM", len(gallery) + more)
    (served.place / "clips.0.usearch").write_bytes(b"garbage")
    if more:
        assert served.refresh()
    else:
        with pytest.raises(GalleryError, match="does not fit the gallery"):
            served.refresh()


def test_galleries_are_looked_at_every_two_seconds():
    assert galleries.REFRESH_S == 2.0


def test_galleries_are_named_by_their_folders(tmp_path):
    folders = ["a", "b/a", "a b", "c/a", "ä-1_x", "a-2"]
    expected = ["a", "a-2", "a-b", "a-3", "ä-1_x", "a-2-2"]
    assert names_of([tmp_path / one for one in folders]) == expected
    assert names_of([Path("/")]) == ["gallery"]
