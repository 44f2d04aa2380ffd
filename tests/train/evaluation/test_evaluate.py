"""The protocol, on models whose every answer is known."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dgl_runtime import Retriever
from dgl_runtime.errors import EngineError
from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.data.frame_cache import FrameCache
from dgl_train.evaluation import evaluate as module
from dgl_train.evaluation.evaluate import (
    Embeddings,
    Encoders,
    bundle_encoders,
    embed_captions,
    embed_dataset,
    evaluate,
    report,
    torch_encoders,
)
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.dgl import last
from dgl_train.model.dual_encoder import FrameMeanModel
from tests.helpers.runs import tuned_model
from tests.helpers.specs import frame_spec
from tests.helpers.tiny import WORDS


@pytest.fixture(scope="module")
def oracle(clips):
    """Encoders that know every clip by its pixels and every caption by its word."""
    (batch,) = read_batches(clips, FrameFormat(frame_spec(2, 16)), evaluation_batches(8, 8))
    known = {frames.tobytes(): row for row, frames in enumerate(batch.frames.numpy())}

    def embed_captions(captions):
        rows = [WORDS.index(caption.split()[-1]) for caption in captions]
        return np.eye(len(WORDS), dtype=np.float32)[rows]

    def embed_clips(frames):
        rows = [known[one.tobytes()] for one in frames]
        return np.eye(len(WORDS), dtype=np.float32)[rows]

    def weigh_frames(frames):
        return np.full(frames.shape[:2], 0.5, np.float32)

    return Encoders(
        embed_captions,
        embed_clips,
        weigh_frames,
        tokenizer=None,
        frames=frame_spec(2, 16),
    )


def sizes(encoders):
    return encoders.frames.num_frames, encoders.frames.size, encoders.tokenizer.spec.max_tokens


def test_a_model_that_knows_all_is_perfect_both_ways(clips, oracle):
    report = evaluate(oracle, clips, progress=False)
    assert (report.text_to_video.r1, report.video_to_text.r1) == (100.0, 100.0)
    assert (report.text_to_video.num_queries, report.video_to_text.num_queries) == (8, 8)
    assert (report.direction_score, report.direction_clips) == (None, 0)


def test_captions_of_one_clip_share_one_row(clips, oracle):
    again = replace(clips[2], caption="once more the cat")
    rows = [clips[2], clips[0], again, replace(clips[0], caption="not the cat")]
    embeddings = embed_dataset(oracle, rows, progress=False)
    assert (embeddings.captions.shape, embeddings.clips.shape) == ((4, 8), (2, 8))
    np.testing.assert_array_equal(embeddings.caption_clip, [0, 1, 0, 1])
    report = evaluate(oracle, rows, progress=False)
    assert report.text_to_video.num_queries == 4
    assert report.text_to_video.r1 == 75.0  # "not the cat" is a caption of the ant's clip
    assert report.video_to_text.num_queries == 2


def test_parts_of_one_video_are_clips_of_their_own(clips, oracle):
    everything = replace(clips[0], end_s=99.0)
    assert len(embed_dataset(oracle, [clips[0], everything], progress=False).clips) == 2


def test_direction_counts_clips_whose_reverse_has_another_caption(clips, oracle):
    rows = [
        replace(clips[0], reversed_caption="the bee"),  # own caption is closer
        replace(clips[1], caption="the cat", reversed_caption="the bee"),  # the reverse is closer
        replace(clips[2], reversed_caption=clips[2].caption),  # no direction in time
        clips[3],
    ]
    report = evaluate(oracle, rows, progress=False)
    assert (report.direction_score, report.direction_clips) == (50.0, 2)


def test_direction_is_told_by_the_cosines_to_the_own_clip():
    """0.6 against 0.8, and 1 against 0."""
    found = report(
        Embeddings(
            captions=np.array([[0.6, 0.8], [0.0, 1.0]], np.float32),
            clips=np.eye(2, dtype=np.float32),
            caption_clip=np.array([0, 1]),
            reversed_captions=np.array([[0.8, 0.6], [1.0, 0.0]], np.float32),
            reversed_rows=np.array([0, 1]),
        )
    )
    assert (found.direction_score, found.direction_clips) == (50.0, 2)


def test_clips_may_stand_for_their_captions(clips, oracle):
    rows = [
        replace(clips[0], caption="the dog"),
        replace(clips[1], caption="the ant"),
        replace(clips[1], caption="once more the ant"),
        clips[2],
    ]
    embeddings = embed_dataset(oracle, rows, progress=False)
    assert report(embeddings).video_to_text.mean_rank == (4 + 3 + 1) / 3
    assert report(embeddings, group_captions=True).video_to_text.mean_rank == (3 + 3 + 1) / 3


def test_a_torch_model_is_seen_as_encoders(clips, backbone):
    model = FrameMeanModel(backbone, backbone.inputs_of(num_frames=3, max_tokens=24))
    encoders = torch_encoders(model, torch.device("cpu"))
    assert (encoders.frames.num_frames, encoders.frames.size) == (3, 16)
    embeddings = embed_dataset(encoders, clips, progress=False)
    assert embeddings.clips.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings.clips, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings.captions, axis=1), 1, rtol=1e-5)
    (batch,) = read_batches(clips, FrameFormat(frame_spec(3, 16)), evaluation_batches(8, 8))
    np.testing.assert_allclose(encoders.weigh_frames(batch.frames.numpy()), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("visual_output", ["global-prompt", "mean-frames"])
def test_encoders_of_a_torch_model_give_what_it_gives(clips, backbone, visual_output):
    model = tuned_model(backbone).model
    model.visual_output = visual_output
    model.inputs = backbone.inputs_of(num_frames=2, max_tokens=5)
    encoders = torch_encoders(model, torch.device("cpu"))
    assert sizes(encoders) == (2, 16, 5)
    captions = ["the ant", "a bee that flies over the hill and far away"]  # the second is cut
    (batch,) = read_batches(clips, FrameFormat(frame_spec(2, 16)), evaluation_batches(8, 8))
    tokens = torch.from_numpy(clip_tokenizer(5)(captions).ids)
    with torch.no_grad():
        text, video = model.encode_captions(tokens), model.encode_clips(batch.frames)
        weights = last(model.clip_states(batch.frames, model.prompts())).frame_weights()
    if visual_output == "mean-frames":
        weights = np.full((8, 2), 0.5)
    frames = batch.frames.numpy()
    np.testing.assert_allclose(encoders.embed_captions(captions), text, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoders.embed_clips(frames), video, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoders.weigh_frames(frames), weights, rtol=0, atol=1e-6)
    given = encoders.embed_captions(captions), encoders.embed_clips(frames)
    assert all(isinstance(one, np.ndarray) for one in (*given, encoders.weigh_frames(frames)))


def test_encoders_of_a_bundle_give_what_the_runtime_gives(bundle):
    retriever, encoders = Retriever(bundle), bundle_encoders(bundle)
    golden = retriever.bundle.golden.frames
    for ours, expected in (
        (encoders.embed_captions(["a dog"]), retriever.embed_texts(["a dog"])),
        (encoders.embed_clips(golden), retriever.embed_clips(golden).embeddings),
        (encoders.weigh_frames(golden), retriever.embed_clips(golden).frame_weights),
    ):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert sizes(encoders) == (4, 32, 32)


@pytest.mark.parametrize(("limit", "value"), [("device", "cuda"), ("engine", "tensorrt")])
def test_a_bundle_runs_where_it_is_asked_to_or_not_at_all(bundle, limit, value):
    with pytest.raises(EngineError, match=value):
        bundle_encoders(bundle, **{limit: value}).embed_captions(["a dog"])


def test_batches_change_nothing_and_are_no_larger_than_memory_allows(clips, oracle, monkeypatch):
    whole = embed_dataset(oracle, clips, progress=False)
    sizes = []

    def embed_few(frames):
        sizes.append(len(frames))
        return oracle.embed_clips(frames)

    def embed_captions(captions):
        sizes.append(-len(captions))
        return oracle.embed_captions(captions)

    monkeypatch.setattr(module, "_BATCH_FRAMES", 7)  # three clips of two frames
    monkeypatch.setattr(module, "_BATCH_CAPTIONS", 3)
    few = replace(oracle, embed_clips=embed_few, embed_captions=embed_captions)
    parts = embed_dataset(few, clips, progress=False)
    assert sizes == [-3, -3, -2, 3, 3, 2]
    np.testing.assert_array_equal(parts.captions, whole.captions)
    np.testing.assert_array_equal(parts.clips, whole.clips)
    monkeypatch.setattr(module, "_BATCH_FRAMES", 1)  # one clip is more than that
    assert len(embed_dataset(few, clips[:2], progress=False).clips) == 2


def test_no_captions_are_no_embeddings(oracle):
    assert embed_captions(oracle, []).shape == (0, 0)


def test_similarities_are_captions_by_clips(clips, oracle):
    found = embed_dataset(oracle, [clips[0], clips[2], clips[0]], progress=False)
    np.testing.assert_array_equal(found.similarity(), [[1, 0], [0, 1], [1, 0]])


def test_a_cache_gives_the_same_figures_and_is_filled(clips, oracle, tmp_path):
    cache = FrameCache(tmp_path, 10**9)
    for _ in range(2):
        assert evaluate(oracle, clips, cache=cache, progress=False).text_to_video.r1 == 100.0
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_bar_tells_how_far_it_is_goes_in_the_end_and_is_left_out_where_nobody_wants_it(
    clips, oracle, capsys, monkeypatch
):
    monkeypatch.setattr(module, "tqdm", partial(module.tqdm, mininterval=0))  # every step is drawn
    evaluate(oracle, clips)
    told = capsys.readouterr().err
    assert "0/8" in told
    assert "8/8" in told
    assert told.endswith("\r")
    evaluate(oracle, clips, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("options", "number"), [({}, 0), ({"num_workers": 2}, 2)])
def test_as_many_processes_read_as_are_asked_for(clips, oracle, monkeypatch, options, number):
    asked, real = [], module.read_batches

    def read_here(*given, num_workers, **others):
        asked.append(num_workers)
        return real(*given, num_workers=0, **others)

    monkeypatch.setattr(module, "read_batches", read_here)
    evaluate(oracle, clips, progress=False, **options)
    assert asked == [number]
