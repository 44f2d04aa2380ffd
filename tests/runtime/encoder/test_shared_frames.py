"""Frames that clips share are encoded once, and the clips are what they would be without."""

import threading

import numpy as np

from dgl_runtime.encoder import shared_frames
from dgl_runtime.encoder.shared_frames import SharedFrames

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
WEIGHTS = RNG.standard_normal((48, 5))


def encode(clips):
    """Clips of one frame, by a linear map."""
    assert clips.shape[1:] == (1, 3, 4, 4)
    found = clips.reshape(len(clips), -1) @ WEIGHTS
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def windows(length, step):
    return np.stack([FRAMES[at : at + length] for at in range(0, 11 - length, step)])


def counted(calls):
    def count(clips):
        calls.append(len(clips))
        return encode(clips)

    return count


def test_overlapping_clips_are_means_of_frames_that_were_encoded_once():
    calls = []
    shared = SharedFrames(counted(calls))
    clips = windows(4, 2)
    found = np.concatenate([shared.embed_clips(clips[:2]), shared.embed_clips(clips[2:])])
    by_frame = encode(clips.reshape(-1, 1, 3, 4, 4)).reshape(4, 4, -1)
    mean = by_frame.mean(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert calls == [6, 4]
    shared.embed_clips(clips)
    assert calls == [6, 4]


def test_only_the_frames_encoded_last_are_kept(monkeypatch):
    monkeypatch.setattr(shared_frames, "KEPT_FRAMES", 4)
    calls = []
    shared = SharedFrames(counted(calls))
    for at in (0, 4, 0):
        shared.embed_clips(FRAMES[None, at : at + 4])
    assert calls == [4, 4, 4]
    shared.embed_clips(FRAMES[None, 2:6])  # two of them are those of a moment ago
    assert calls == [4, 4, 4, 2]


def test_threads_may_share_it():
    shared, clips = SharedFrames(encode), windows(4, 1)
    expected, wrong = SharedFrames(encode).embed_clips(clips), []

    def work(seed):
        for row in np.random.default_rng(seed).integers(0, len(clips), 50):
            if not np.allclose(shared.embed_clips(clips[[row]])[0], expected[row], atol=1e-6):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
