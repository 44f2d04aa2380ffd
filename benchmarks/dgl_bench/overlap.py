"""Overlapping windows of an untuned model: what it is worth that frames they share are encoded once."""

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dgl_bench.command import say
from dgl_bench.processes import resident_bytes
from dgl_bench.report import Row
from dgl_bench.timing import Spread, time_paired
from dgl_runtime.encoder.encoder import Encoder
from dgl_runtime.encoder.shared_frames import SharedFrames
from dgl_runtime.media.frame_spec import FrameSpec

Float32 = NDArray[np.float32]
Clips = NDArray[np.uint8]

OVERLAPS = (2, 4)  # windows that show a frame
WINDOWS = 24
MORE = 10  # times as many windows, for the memory
BATCH = 8  # dgl-index's
ROUNDS = 5
ALONE, SHARED = "each window by itself", "frames shared"
MAX_OFF = 1e-6  # rounding of a mean


def overlapping_rows(encoder: Encoder) -> Iterator[Row]:
    """Times of both ways, paired, for each overlap; none of a model that looks at a clip as a whole."""
    for overlap in OVERLAPS if encoder.bundle.manifest.frame_wise else ():
        say(f"overlapping windows: {overlap} show a frame")
        frames = encoder.input_spec.frames
        step = max(1, frames.num_frames // overlap)
        windows = list(made_windows(frames, step, WINDOWS))
        calls = {
            ALONE: lambda windows=windows: _by_themselves(encoder, windows),
            SHARED: lambda windows=windows: _shared(encoder, windows),
        }
        paired = time_paired(calls, rounds=ROUNDS, warm_up=1, label=f"overlap {overlap}")
        off = float(np.abs(paired.results[SHARED] - paired.results[ALONE]).max())
        yield {
            "a window begins every": f"1/{overlap} window",
            "engine": encoder.clip_engine.description,
            **{f"clips/s, {name}": _rate(times) for name, times in paired.times_ms.items()},
            "times as fast": paired.speedup(SHARED, over=ALONE),
            "off by": off,
            f"MB more after {MORE} times the windows": _grown_bytes(encoder, step) / 1e6,
            "wrong": f"frames shared: off by {off:.0e}" if not off <= MAX_OFF else None,
        }


def made_windows(frames: FrameSpec, step: int, count: int) -> Iterator[Clips]:
    """Windows in batches, uint8 [B, F, 3, S, S]: noise, each window ``step`` frames after the one before."""
    rng, size = np.random.default_rng(0), (3, frames.size, frames.size)
    shown = rng.integers(0, 256, (frames.num_frames, *size), np.uint8)
    for first in range(0, count, BATCH):
        clips = []
        for _ in range(min(BATCH, count - first)):
            clips.append(shown)
            new = rng.integers(0, 256, (step, *size), np.uint8)
            shown = np.concatenate([shown[step:], new])
        yield np.stack(clips)


def _by_themselves(encoder: Encoder, windows: list[Clips]) -> Float32:
    """As the graph has it."""
    return np.concatenate([_run(encoder, batch) for batch in windows])


def _shared(encoder: Encoder, windows: list[Clips]) -> Float32:
    """As the encoder does it, which knows none of the frames yet."""
    shared = SharedFrames(lambda frames: _run(encoder, frames))
    return np.concatenate([shared.embed_clips(batch) for batch in windows])


def _run(encoder: Encoder, frames: Clips) -> Float32:
    return np.asarray(encoder.clip_engine.run({"frames": frames})["embedding"], np.float32)


def _rate(times_ms: list[float]) -> Spread:
    return Spread.of([1000 * WINDOWS / one for one in times_ms])


def _grown_bytes(encoder: Encoder, step: int) -> int:
    """How much more memory is resident at most, when ``MORE`` times the windows have been embedded."""
    held = []
    for batch in made_windows(encoder.input_spec.frames, step, MORE * WINDOWS):
        encoder.embed_clips(batch)
        held.append(resident_bytes(os.getpid())[0])
    return max(held) - max(held[: len(held) // MORE])
