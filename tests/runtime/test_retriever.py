import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_runtime import ClipEmbeddings, DglError, Hit, Retriever
from dgl_runtime.errors import BundleError, GalleryError, MediaError
from tests.helpers.changed_bundles import changed_bundle
from tests.helpers.made_galleries import clips_of

QUERIES = ["a dog jumps into the lake", "cooking", "", "a man " * 40, "猫が走る 😀"]


@pytest.fixture(scope="module")
def retriever(bundle):
    return Retriever(bundle, threads=1)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (5, 4, 3, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def filled(bundle, videos, tmp_path_factory):
    """A gallery of all videos in windows of one second, made here."""
    folder = tmp_path_factory.mktemp("filled") / "gallery"
    with Retriever(bundle, folder, threads=1) as opened:
        opened.add_videos([videos], window_s=1.0, stride_s=0.5)
    return folder


# ---- texts -----------------------------------------------------------------------------------


def test_text_embeddings_have_unit_norm(retriever):
    embeddings = retriever.embed_texts(QUERIES)
    assert embeddings.shape == (5, 32)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_a_text_in_a_batch_has_the_embedding_it_has_alone(retriever):
    alone = [retriever.embed_texts([query])[0] for query in QUERIES]
    np.testing.assert_allclose(retriever.embed_texts(QUERIES), alone, rtol=0, atol=1e-6)
    turned = retriever.embed_texts(QUERIES[::-1])[::-1]
    np.testing.assert_allclose(turned, alone, rtol=0, atol=1e-6)


def test_different_texts_have_different_embeddings(retriever):
    embeddings = retriever.embed_texts(QUERIES)
    assert (embeddings @ embeddings.T)[~np.eye(5, dtype=bool)].max() < 0.999


@settings(max_examples=25, deadline=None)
@given(padding=st.integers(1, 20), query=st.sampled_from(QUERIES))
def test_padding_changes_nothing(retriever, padding, query):
    tokens = retriever.tokenizer([query]).ids
    padded = np.pad(tokens, ((0, 0), (0, padding)))
    np.testing.assert_allclose(
        retriever.embed_tokens(padded), retriever.embed_tokens(tokens), rtol=0, atol=1e-6
    )


def test_no_texts_have_no_embeddings(retriever):
    embeddings = retriever.embed_texts([])
    assert embeddings.shape == (0, 32)
    assert embeddings.dtype == np.float32


def test_one_text_instead_of_a_list_is_refused(retriever):
    with pytest.raises(ValueError, match="expected a list of texts"):
        retriever.embed_texts("a dog")


# ---- clips -----------------------------------------------------------------------------------


def test_clip_embeddings_have_unit_norm_and_frame_weights_sum_to_1(retriever, clips):
    encoded = retriever.embed_clips(clips)
    assert isinstance(encoded, ClipEmbeddings)
    assert encoded.embeddings.shape == (5, 32)
    assert encoded.frame_weights.shape == (5, 4)
    assert encoded.embeddings.dtype == encoded.frame_weights.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(encoded.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encoded.frame_weights.sum(axis=1), 1, atol=1e-6)
    assert (encoded.frame_weights > 0).all()


def test_a_clip_in_a_batch_has_the_embedding_it_has_alone(retriever, clips):
    together = retriever.embed_clips(clips)
    for row in range(len(clips)):
        alone = retriever.embed_clips(clips[row : row + 1])
        for ours, theirs in (
            (together.embeddings, alone.embeddings),
            (together.frame_weights, alone.frame_weights),
        ):
            np.testing.assert_allclose(ours[row], theirs[0], rtol=0, atol=1e-6)


def test_dgl_linear_takes_any_number_of_frames(retriever, clips):
    encoded = retriever.embed_clips(np.tile(clips[:2], (1, 3, 1, 1, 1)))
    assert encoded.frame_weights.shape == (2, 12)
    np.testing.assert_allclose(encoded.frame_weights.sum(axis=1), 1, atol=1e-6)


def test_no_clips_have_no_embeddings(retriever, clips):
    encoded = retriever.embed_clips(clips[:0])
    assert encoded.embeddings.shape == (0, 32)
    assert encoded.frame_weights.shape == (0, 4)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 4, 3, 32, 32), np.float32),
        ((2, 4, 3, 32, 32), np.int8),
        ((2, 4, 3, 16, 16), np.uint8),
        ((2, 4, 1, 32, 32), np.uint8),
        ((2, 4, 32, 32, 3), np.uint8),
        ((4, 3, 32, 32), np.uint8),
        ((1, 2, 4, 3, 32, 32), np.uint8),
        ((), np.uint8),
    ],
)
def test_wrong_clips_say_what_they_are_and_what_is_taken(retriever, shape, dtype):
    with pytest.raises(ValueError, match=r"frames are .*, the clip encoder takes uint8 \['batch'"):
        retriever.embed_clips(np.zeros(shape, dtype))


@pytest.mark.parametrize("given", [None, "clip", [1, 2], {}])
def test_what_is_no_array_is_refused_as_one(retriever, given):
    with pytest.raises(ValueError, match=r"frames are .*, the clip encoder takes uint8 \['batch'"):
        retriever.embed_clips(given)


def test_what_numpy_takes_as_an_array_is_one(retriever, clips):
    listed = retriever.embed_clips(memoryview(clips[:1]))
    np.testing.assert_array_equal(listed.embeddings, retriever.embed_clips(clips[:1]).embeddings)


# ---- searching -------------------------------------------------------------------------------


def test_a_search_finds_moments_best_first(bundle, filled, videos):
    with Retriever(bundle, filled, threads=1) as opened:
        hits = opened.search(QUERIES[0], top_k=50, grouping="none")
        embeddings = np.array(opened.gallery.embeddings())
        (expected,) = opened.embed_texts(QUERIES[:1]) @ embeddings.T
        assert opened.search(QUERIES[0], top_k=4, grouping="none") == hits[:4]
        assert len(opened.search(QUERIES[0], grouping="none")) == 10
    assert len(hits) == len(embeddings) == 3 + 5 + 7
    found = [hit.similarity for hit in hits]
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose(found, np.sort(expected)[::-1], atol=1e-6)
    assert {hit.video for hit in hits} == {str(path.resolve()) for path in videos.iterdir()}


def test_the_fields_of_a_hit_are_plain_python(bundle, filled):
    with Retriever(bundle, filled, threads=1) as opened:
        hits = opened.search("cooking", top_k=15)
        durations = {clip.video: clip.duration_s for _, clip in clips_of(opened.gallery)}
    for hit in hits:
        assert isinstance(hit, Hit)
        assert {
            field.name: type(getattr(hit, field.name)) for field in dataclasses.fields(hit)
        } == {
            "video": str,
            "start_s": float,
            "end_s": float,
            "similarity": float,
            "frame_weights": tuple,
            "row": int,
        }
        assert 0 <= hit.start_s < hit.end_s <= durations[hit.video]
        assert hit.end_s - hit.start_s == pytest.approx(1.0)
        assert -1 <= hit.similarity <= 1
        assert len(hit.frame_weights) == 4
        assert sum(hit.frame_weights) == pytest.approx(1, abs=1e-6)
        assert json.loads(json.dumps(dataclasses.asdict(hit)))["video"] == hit.video


def test_a_gallery_made_elsewhere_is_searched_and_equals_one_made_here(
    bundle, fixtures_dir, filled
):
    with (
        Retriever(bundle, fixtures_dir / "gallery", threads=1) as elsewhere,
        Retriever(bundle, filled, threads=1) as here,
    ):
        assert len(elsewhere.gallery) == len(here.gallery) == 15
        np.testing.assert_allclose(
            elsewhere.gallery.embeddings(), here.gallery.embeddings(), rtol=0, atol=1e-4
        )
        there, ours = (opened.search("a dog", top_k=3) for opened in (elsewhere, here))
    assert [hit.similarity for hit in there] == pytest.approx(
        [hit.similarity for hit in ours], abs=1e-4
    )


@pytest.mark.parametrize("query", ["", "  ", "\n\t"])
def test_an_empty_query_is_refused(bundle, filled, query):
    with Retriever(bundle, filled) as opened, pytest.raises(DglError, match="the query is empty"):
        opened.search(query)


def test_a_search_without_a_gallery_is_refused(bundle, tmp_path):
    with pytest.raises(GalleryError, match=r"no gallery was given\. Open Retriever\(bundle, gall"):
        Retriever(bundle).search("a dog")
    with pytest.raises(GalleryError, match="is not a gallery"):
        Retriever(bundle, tmp_path / "missing").search("a dog")
    assert not (tmp_path / "missing").exists()


def test_a_gallery_of_another_bundle_is_refused(other_bundle, filled, videos):
    with Retriever(other_bundle, filled, threads=1) as opened:
        with pytest.raises(GalleryError, match="holds embeddings of bundle"):
            opened.search("a dog")
        with pytest.raises(GalleryError, match="holds embeddings of bundle"):
            opened.add_videos([videos])


# ---- adding ----------------------------------------------------------------------------------


def test_adding_videos_twice_adds_nothing(bundle, videos, tmp_path):
    with Retriever(str(bundle), str(tmp_path / "gallery"), threads=1) as opened:
        first = opened.add_videos([str(videos)])
        before = np.array(opened.gallery.embeddings())
        second = opened.add_videos(videos.iterdir())
        assert (first.num_videos, first.clips_added, first.clips_present) == (3, 3, 0)
        assert (second.num_videos, second.clips_added, second.clips_present) == (3, 0, 3)
        assert first.broken == second.broken == ()
        np.testing.assert_array_equal(opened.gallery.embeddings(), before)


def test_what_was_added_is_found_by_the_same_retriever(bundle, videos, tmp_path):
    one, two, three = sorted(videos.iterdir())
    with Retriever(bundle, tmp_path / "gallery", threads=1) as opened:
        opened.add_videos([one])
        assert len(opened.search("a dog")) == 1
        opened.add_videos([two, three])
        assert len(opened.search("a dog")) == 3


def test_adding_nothing_is_refused(bundle, tmp_path, videos):
    with pytest.raises(GalleryError, match="no gallery was given to add to"):
        Retriever(bundle).add_videos([videos])
    with pytest.raises(MediaError, match="does not exist"):
        Retriever(bundle, tmp_path / "gallery").add_videos([tmp_path / "missing"])
    assert not (tmp_path / "gallery").exists()


def test_after_the_context_the_gallery_is_closed_and_another_may_write(bundle, videos, tmp_path):
    with Retriever(bundle, tmp_path / "gallery", threads=1) as opened:
        opened.add_videos([videos])
        gallery = opened.gallery
    with pytest.raises(GalleryError, match="is closed"):
        gallery.search(opened.embed_texts(["a dog"]), 1)
    with Retriever(bundle, tmp_path / "gallery", threads=1) as again:
        assert again.add_videos([videos]).clips_present == 3
    opened.close()
    assert len(opened.search("a dog")) == 3


# ---- the self-check --------------------------------------------------------------------------


def test_a_whole_bundle_passes_its_self_check(retriever):
    result = retriever.check()
    assert 0 <= result.captions_max_abs < 1e-5
    assert 0 <= result.clips_max_abs < 1e-5
    assert result.captions_min_cosine == pytest.approx(1, abs=1e-5)
    assert result.clips_min_cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0.01, np.nan])
@pytest.mark.parametrize("name", ["caption_embeddings", "clip_embeddings", "frame_weights"])
def test_changed_golden_outputs_fail_the_self_check(bundle, tmp_path, name, value):
    def change(golden):
        golden[name][1, 2] += value

    folder = changed_bundle(bundle, tmp_path / "copy", golden=change)
    with pytest.raises(
        BundleError, match=r"fails its self-check: .* results differ by .*Export it"
    ):
        Retriever(folder, threads=1).check()


@pytest.mark.parametrize(("precision", "angle"), [("fp16", 0.03), ("int8", 0.1), ("fp8", 0.1)])
@pytest.mark.parametrize("name", ["caption_embeddings", "clip_embeddings"])
def test_a_lower_precision_is_checked_by_cosine(bundle, tmp_path, name, precision, angle):
    def turn_by(angle):
        def turn(golden):
            row = golden[name][1]
            aside = np.roll(row, 1) - (np.roll(row, 1) @ row) * row
            golden[name][1] = np.cos(angle) * row + np.sin(angle) * aside / np.linalg.norm(aside)

        return turn

    near = changed_bundle(bundle, tmp_path / "near", golden=turn_by(angle), precision=precision)
    found = Retriever(near, engine="onnx", threads=1).check()
    graph, of = {
        "caption_embeddings": ("text_encoder", "captions"),
        "clip_embeddings": ("clip_encoder", "clips"),
    }[name]
    assert getattr(found, f"{of}_min_cosine") == pytest.approx(np.cos(angle), abs=1e-5)
    far = changed_bundle(bundle, tmp_path / "far", golden=turn_by(2 * angle), precision=precision)
    with pytest.raises(
        BundleError,
        match=rf"fails its self-check: .*{graph} an embedding has cosine 0\.9.*{precision}",
    ):
        Retriever(far, engine="onnx", threads=1).check()


def test_many_texts_come_back_in_their_order(bundle):
    texts = [" ".join(["dog"] * (1 + 7 * number % 13)) + f" {number}" for number in range(70)]
    with Retriever(bundle, threads=1) as retriever:
        together = retriever.embed_texts(texts)
        alone = np.concatenate([retriever.embed_texts([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
