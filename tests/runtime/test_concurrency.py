"""One Retriever for many threads and for a long time: the same answers, and flat memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from dgl_runtime import Retriever
from dgl_runtime.encoder import choice
from tests import ROOT

pytestmark = pytest.mark.slow

MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}
# Tokens of captions, 3 to 32 in batches of 1 to 8; some texts; some clips.
CLIP_EVERY, TEXTS_EVERY = 20, 7
WORDS = "a dog jumps into the lake while two women talk beside the red car".split()
STATM = Path("/proc/self/statm")


@pytest.fixture(
    params=[("bundle", "onnx"), ("bundle", "openvino"), ("int8_bundle", "onnx")],
    ids=["onnx fp32", "openvino fp32", "onnx int8"],
)
def chosen(fixtures_dir, request):
    """A bundle and an engine."""
    name, engine = request.param
    if find_spec(MODULES[engine]) is None:
        pytest.skip(f"{MODULES[engine]} is not installed")
    return fixtures_dir / name, engine


@pytest.fixture
def retriever(chosen):
    bundle, engine = chosen
    return Retriever(bundle, engine=engine, threads=1)


def request_of(number):
    """Texts, tokens int32 [B, L] or frames uint8 [B, 4, 3, 32, 32], the same for the same number."""
    rng = np.random.default_rng(number)
    if number % TEXTS_EVERY == 0:
        return [" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(rng.integers(1, 9))]
    if number % CLIP_EVERY == 0:
        return rng.integers(0, 256, (rng.integers(1, 5), 4, 3, 32, 32), np.uint8)
    tokens = rng.integers(1, 49406, (rng.integers(1, 9), rng.integers(3, 33)), np.int32)
    tokens[:, -1] = 49407
    return tokens


def answer(retriever, number):
    request = request_of(number)
    if isinstance(request, list):
        return retriever.embed_texts(request)
    if request.dtype == np.uint8:
        encoded = retriever.embed_clips(request)
        return np.hstack([encoded.embeddings, encoded.frame_weights])
    return retriever.embed_tokens(request)


@pytest.mark.parametrize("num_threads", [2, 8])
def test_threads_that_share_a_retriever_get_the_single_threads_answers(retriever, num_threads):
    numbers = range(200)
    alone = [answer(retriever, number) for number in numbers]
    with ThreadPoolExecutor(num_threads) as pool:
        together = list(pool.map(lambda number: answer(retriever, number), numbers))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_threads_that_come_first_together_load_each_graph_once(retriever, monkeypatch):
    opened = []
    real = choice.open_engine
    monkeypatch.setattr(
        choice, "open_engine", lambda path, **how: opened.append(path.name) or real(path, **how)
    )
    texts = ["a dog jumps into the lake", "cooking"]
    barrier = Barrier(8)

    def first(number):
        barrier.wait()
        return retriever.embed_texts(texts) if number % 2 else answer(retriever, CLIP_EVERY)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first, range(8)))
    assert sorted(opened) == ["clip_encoder.onnx", "text_encoder.onnx"]
    for number, ours in enumerate(found):
        np.testing.assert_array_equal(ours, found[number % 2])


def memory_mb():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def mean_memory_mb(retriever, numbers):
    """Resident memory while requests are answered, mean over them."""
    measured = []
    for number in numbers:
        answer(retriever, number)
        measured.append(memory_mb())
    return float(np.mean(measured))


def first_and_last_mb(bundle, engine, count, window=1_000):
    """Resident memory over the first and the last requests of many, when every shape has been seen."""
    retriever = Retriever(bundle, engine=engine, threads=1)
    for number in range(window):
        answer(retriever, number)
    first = mean_memory_mb(retriever, range(window))
    for number in range(count - 3 * window):
        answer(retriever, number)
    return first, mean_memory_mb(retriever, range(window))


ALONE = """import sys
from tests.runtime.test_concurrency import first_and_last_mb
bundle, engine, count = sys.argv[1:]
print(*first_and_last_mb(bundle, engine, int(count)))"""


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    "count", [6_000, pytest.param(100_000, marks=pytest.mark.soak)], ids=["short", "full"]
)
def test_memory_is_flat_over_requests_of_mixed_shapes(chosen, count):
    """In a process of its own: in one with other tests, what they left behind moves too."""
    bundle, engine = chosen
    done = subprocess.run(
        [sys.executable, "-c", ALONE, bundle.resolve(), engine, str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split())
    assert last - first < 8, f"{first:.1f} MB, after {count} requests {last:.1f} MB"
