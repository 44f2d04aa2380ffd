"""What an Encoder does that a Retriever does not show; texts and clips are in test_retriever.py."""

import numpy as np
import pytest
from PIL import Image

from dgl_runtime import Encoder, Retriever
from dgl_runtime.media.pixels import preprocess
from tests.helpers.specs import frame_spec


@pytest.fixture(scope="module")
def encoder(bundle):
    return Encoder(bundle, threads=1)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((48, 64), (32, 32), (90, 40))]


def test_a_picture_is_a_clip_that_shows_nothing_else(encoder, pictures):
    still = np.stack([preprocess(pictures[0], frame_spec(1, 32))] * 4)[None]
    np.testing.assert_allclose(
        encoder.embed_pictures(pictures[:1]), encoder.embed_clips(still).embeddings, atol=1e-6
    )


def test_pictures_of_any_size_and_kind_are_embedded_together(encoder, pictures):
    images = [Image.fromarray(picture) for picture in pictures]
    found = encoder.embed_pictures([images[0], pictures[1], images[2]])
    assert found.shape == (3, 32)
    assert found.dtype == np.float32
    alone = [encoder.embed_pictures([picture])[0] for picture in pictures]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert encoder.embed_pictures([]).shape == (0, 32)


def test_one_picture_or_an_array_of_several_need_no_list(encoder, pictures):
    alone = encoder.embed_pictures(pictures[:1])
    for one in (pictures[0], Image.fromarray(pictures[0]), np.stack(pictures[:1])):
        np.testing.assert_array_equal(encoder.embed_pictures(one), alone)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused(encoder, picture):
    with pytest.raises(ValueError, match=r"a picture is .*, expected uint8 \[H, W, 3\] RGB or"):
        encoder.embed_pictures([picture])
    with pytest.raises(ValueError, match="a picture is"):
        encoder.embed_pictures(picture)


def test_a_retriever_answers_as_its_encoder(bundle, pictures):
    retriever = Retriever(bundle, threads=1)
    encoder = retriever.encoder
    for name in ("bundle", "num_frames", "frame_size", "tokenizer", "clip_engine", "engine"):
        assert getattr(retriever, name) == getattr(encoder, name), name
    assert retriever.text_engine is encoder.text_engine
    assert retriever.chosen("clip_encoder") is encoder.chosen("clip_encoder")
    np.testing.assert_array_equal(
        retriever.embed_pictures(pictures), encoder.embed_pictures(pictures)
    )
    assert encoder.embed_dim == 32


def test_a_graph_that_no_bundle_has_is_refused_with_those_it_has(encoder):
    names = "text_encoder or clip_encoder"
    with pytest.raises(ValueError, match=f"'captions' is no graph of a bundle, expected {names}"):
        encoder.chosen("captions")
