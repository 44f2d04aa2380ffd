"""Running engines on stand-ins of TensorRT and CUDA that keep their rules."""

import ctypes
import logging
import threading

import numpy as np
import pytest

from dgl_runtime.engines.tensorrt_contexts import MAX_GRAPHS
from dgl_runtime.errors import EngineError
from tests.helpers import fake_tensorrt
from tests.helpers.cuda_arrays import CudaDlpack, CudaInterface
from tests.helpers.engine_files import frames, install_stand_ins, load, tokens
from tests.helpers.fake_tensorrt import compute


@pytest.fixture
def cuda(monkeypatch):
    return install_stand_ins(monkeypatch)


@pytest.fixture
def captions(cuda, tmp_path):
    return load(tmp_path)


@pytest.fixture
def clips(cuda, tmp_path):
    return load(tmp_path, "clip_encoder")


def on_device(cuda, array, **changes):
    """An array of the stand-in's device memory."""
    address = cuda.array(array)
    return CudaInterface(array, data=(address, False), **changes), address


# ---- running ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (1, 32), (3, 7), (16, 32)])
def test_captions_of_every_shape_in_a_profile_run(captions, shape):
    x = tokens(*shape)
    out = captions.run({"tokens": x})
    assert list(out) == ["embedding"]
    assert out["embedding"].dtype == np.float32
    np.testing.assert_array_equal(out["embedding"], compute(x, 5))


def test_clips_give_both_outputs_whatever_their_frames(clips):
    for num_frames in (1, 3, 4):
        x = frames(2, num_frames, 3, 8, 8)
        out = clips.run({"frames": x})
        np.testing.assert_array_equal(out["embedding"], compute(x, 5))
        np.testing.assert_array_equal(out["frame_weights"], compute(x, num_frames))


def test_more_rows_than_the_engine_takes_run_in_parts(captions, clips, cuda):
    x = tokens(37, 9)
    np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))
    x = frames(9, 4, 3, 8, 8)
    for given in (x, on_device(cuda, x)[0]):
        out = clips.run({"frames": given})
        np.testing.assert_array_equal(out["embedding"], compute(x, 5))
        np.testing.assert_array_equal(out["frame_weights"], compute(x, 4))


def test_the_description_names_library_version_gpu_and_precision(captions):
    assert captions.description == "tensorrt 11.4.0.106 (cuda, NVIDIA Fake 1, fp16)"


def test_rows_of_a_larger_array_are_made_contiguous(captions):
    x = tokens(4, 9)[:, :6]
    np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))


def test_a_single_query_runs_in_the_profile_made_for_it(captions, monkeypatch):
    used = []
    run = captions._contexts.run
    monkeypatch.setattr(captions._contexts, "run", lambda p, *rest: (used.append(p), run(p, *rest)))
    for batch in (1, 2, 16, 1):
        captions.run({"tokens": tokens(batch, 4)})
    assert used == [0, 1, 1, 0]


def test_nothing_is_allocated_after_loading(captions, cuda):
    free = cuda.free
    for batch in (1, 16, 3):
        captions.run({"tokens": tokens(batch, 32)})
    assert cuda.free == free


def test_memory_goes_back_with_the_engine(cuda, tmp_path):
    load(tmp_path).run({"tokens": tokens(1, 4)})
    assert cuda.blocks == {}


def test_threads_that_share_an_engine_get_their_own_answers(captions):
    batches = [tokens(1 + number % 16, 2 + number % 31) + number for number in range(64)]
    answers = [None] * len(batches)

    def work(first):
        for number in range(first, len(batches), 4):
            answers[number] = captions.run({"tokens": batches[number]})["embedding"]

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, compute(batch, 5))


def test_a_thread_that_used_another_device_is_set_right(captions, cuda):
    cuda.current_device = 3
    captions.run({"tokens": tokens(1, 4)})
    assert cuda.current_device == 0


# ---- CUDA graphs -----------------------------------------------------------------------------


def test_a_repeated_shape_is_captured_the_second_time_and_launched_from_then_on(captions, cuda):
    steps = []
    for number in range(4):
        cuda.calls.clear()
        x = tokens(2, 5) + number
        np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))
        steps.append(
            [call for call in cuda.calls if call != "synchronize" and "Memcpy" not in call]
        )
    capture = ["execute", "begin capture", "execute", "end capture", "instantiate"]
    assert steps == [["execute"], capture, ["launch graph"], ["launch graph"]]


def test_other_shapes_between_do_not_disturb_a_captured_one(captions, cuda):
    for shape in [(2, 5)] * 3 + [(3, 7), (1, 2), (1, 5)] * 3 + [(2, 5)]:
        x = tokens(*shape)
        np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))
    assert cuda.calls.count("launch graph") == 1 + 3 + 1


def test_the_number_of_graphs_is_bounded_and_the_oldest_goes(captions, cuda):
    shapes = [(batch, length) for batch in (2, 3) for length in range(2, 33)]
    for shape in shapes:
        for _ in range(2):
            captions.run({"tokens": tokens(*shape)})
    assert cuda.calls.count("instantiate") == len(shapes)
    assert cuda.calls.count("destroy graph") == len(shapes) - MAX_GRAPHS
    cuda.calls.clear()
    captions.run({"tokens": tokens(*shapes[-1])})
    captions.run({"tokens": tokens(*shapes[0])})
    assert (cuda.calls.count("launch graph"), cuda.calls.count("execute")) == (1, 1)


def test_a_shape_seen_once_is_forgotten_after_many_others(captions, cuda):
    others = [(3, length) for length in range(2, 33)] + [(4, 2)]
    for shape in [(2, 5), *others, (2, 5)]:
        captions.run({"tokens": tokens(*shape)})
    assert cuda.calls.count("instantiate") == 0


def test_graphs_go_with_the_engine(cuda, tmp_path):
    captions = load(tmp_path)
    for _ in range(2):
        captions.run({"tokens": tokens(1, 5)})
    del captions
    assert cuda.calls.count("destroy graph") == 1
    assert cuda.blocks == {}


def test_an_engine_that_cannot_be_captured_says_so_once_and_runs_on(
    cuda, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(fake_tensorrt.Runtime, "uncapturable", True)
    captions = load(tmp_path)
    with caplog.at_level(logging.WARNING):
        for shape in [(2, 5)] * 4 + [(3, 5)] * 4:
            x = tokens(*shape)
            np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))
    assert len(caplog.records) == 1
    assert "no CUDA graphs for this engine" in caplog.text
    assert cuda.calls.count("instantiate") == 0


def test_nothing_is_captured_while_the_library_still_compiles(captions, cuda, monkeypatch):
    ready = []
    context = fake_tensorrt.IExecutionContext
    monkeypatch.setattr(context, "is_stream_capturable", lambda *_: bool(ready), raising=False)
    for _ in range(4):
        captions.run({"tokens": tokens(2, 5)})
    assert cuda.calls.count("instantiate") == 0
    ready.append(True)
    for _ in range(3):
        x = tokens(2, 5)
        np.testing.assert_array_equal(captions.run({"tokens": x})["embedding"], compute(x, 5))
    assert (cuda.calls.count("instantiate"), cuda.calls.count("launch graph")) == (1, 2)


# ---- arrays on the device --------------------------------------------------------------------


def test_a_device_array_is_read_where_it_lies(clips, cuda):
    x = frames(2, 4, 3, 8, 8)
    given, address = on_device(cuda, x)
    cuda.calls.clear()
    out = clips.run({"frames": given})
    np.testing.assert_array_equal(out["embedding"], compute(x, 5))
    assert "cudaMemcpyHostToDevice" not in cuda.calls
    assert cuda.waits == []
    assert address in cuda.blocks


def test_a_dlpack_array_is_read_where_it_lies(clips, cuda):
    x = frames(1, 2, 3, 8, 8)
    block = (ctypes.c_uint8 * x.size).from_address(cuda.array(x))
    given = CudaDlpack(np.frombuffer(block, np.uint8).reshape(x.shape))
    cuda.calls.clear()
    np.testing.assert_array_equal(clips.run({"frames": given})["embedding"], compute(x, 5))
    assert "cudaMemcpyHostToDevice" not in cuda.calls
    assert given.streams == [77]


def test_device_arrays_that_take_turns_are_never_mixed_up(clips, cuda):
    arrays = [frames(1, 4, 3, 8, 8), frames(1, 4, 3, 8, 8) // 2]
    given = [on_device(cuda, x)[0] for x in arrays]
    for _ in range(4):
        for x, array in zip(arrays, given, strict=True):
            np.testing.assert_array_equal(clips.run({"frames": array})["embedding"], compute(x, 5))
    assert cuda.calls.count("instantiate") == 2


def test_the_producers_stream_is_waited_for_before_the_run(clips, cuda):
    given, _ = on_device(cuda, frames(1, 4, 3, 8, 8), stream=4711)
    clips.run({"frames": given})
    assert cuda.waits == [("record", 88, 4711), ("wait", 77, 88, 0)]


def test_a_device_array_at_an_odd_address_is_refused(clips, cuda):
    x = frames(1, 4, 3, 8, 8)
    address = cuda.array(frames(2, 4, 3, 8, 8)) + 64
    with pytest.raises(EngineError, match="TensorRT needs a multiple of 256"):
        clips.run({"frames": CudaInterface(x, data=(address, False))})


def test_an_array_that_does_not_lie_on_the_device_is_refused(clips):
    with pytest.raises(EngineError, match="frames does not lie on CUDA device 0"):
        clips.run({"frames": CudaInterface(frames(1, 4, 3, 8, 8))})


def test_an_array_on_another_device_is_refused(clips, cuda):
    given, _ = on_device(cuda, frames(1, 4, 3, 8, 8))
    cuda.device_of_memory = 1
    with pytest.raises(EngineError, match="frames does not lie on CUDA device 0"):
        clips.run({"frames": given})


def test_a_device_array_of_another_dtype_is_refused(clips, cuda):
    given, _ = on_device(cuda, frames(1, 4, 3, 8, 8).astype(np.float32))
    with pytest.raises(EngineError, match="frames is float32, the engine takes uint8"):
        clips.run({"frames": given})
