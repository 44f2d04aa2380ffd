"""dgl-bench train: what a training step of each method costs in time and memory.

A process's peak memory never falls, so every measurement has a fresh process. Methods take turns over
the rounds, so that what the machine does meanwhile is not always paid by the same one. Frames and captions
are random and ready in memory: reading videos is not part of it, and neither cost depends on pixels.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from benchmarks.machine import load_average
from benchmarks.timing import Spread, rotating_orders
from dgl_runtime.engines.hardware import cpu_model
from dgl_runtime.errors import EngineError
from dgl_train.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from dgl_train.model.dual_encoder import DualEncoder

WARM_UP = 1  # steps; the first one also makes the optimizer's state
SEED = 0
_SOME_WORDS = 500  # ids below it are words of every vocabulary
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class TrainSpec:
    """One measurement: the recipe names the method, the batch and the backbone."""

    recipe: Recipe
    steps: int
    threads: int
    device: str  # as of --device


@dataclass(frozen=True)
class Measurement:
    """What one process saw.

    Attributes:
        device: The CPU or GPU it computed on.
        trained_parameters: Numbers that the optimizer changes.
        step_s: Time of each step after the warm-up, seconds.
        loss: Of the last step.
        start_bytes: Peak memory before the backbone was read: Python and its libraries. 0 on a GPU.
        peak_bytes: Peak memory at the end; on a GPU, of torch's tensors.
    """

    device: str
    trained_parameters: int
    step_s: list[float]
    loss: float
    start_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class TrainResult:
    """Measurements of all methods; entry i of each list belongs to round i."""

    specs: Mapping[str, TrainSpec]
    rounds: int
    measured: dict[str, list[Measurement]]
    load_before: float | None

    def step_s(self, method: str) -> Spread:
        """All its steps, seconds."""
        return Spread.of([seconds for one in self.measured[method] for seconds in one.step_s])

    def peak_bytes(self, method: str) -> tuple[float, float]:
        """Memory that training needs beside what was there before, and all of it: medians."""
        peaks = np.array([one.peak_bytes for one in self.measured[method]])
        starts = np.array([one.start_bytes for one in self.measured[method]])
        return float(np.median(peaks - starts)), float(np.median(peaks))


def bench_train(specs: Mapping[str, TrainSpec], rounds: int) -> TrainResult:
    """Measure every method once a round, in rotating order.

    Args:
        specs: Method -> what to measure.
        rounds: At least 1.

    Raises:
        ConfigError: The backbone does not load, or the recipe does not fit it.
        EngineError: The device is missing, or a process was killed.
    """
    load_before = load_average()
    methods, orders = list(specs), rotating_orders(len(specs))
    measured: dict[str, list[Measurement]] = {method: [] for method in methods}
    for number in range(rounds):
        for place in orders[number % len(orders)]:
            method = methods[place]
            click.echo(f"round {number + 1} of {rounds}: {method}", err=True)
            measured[method].append(measure_apart(specs[method]))
    return TrainResult(specs, rounds, measured, load_before)


def measure_apart(spec: TrainSpec) -> Measurement:
    """Measure in a fresh process.

    Raises:
        ConfigError: The backbone does not load, or the recipe does not fit it.
        EngineError: The device is missing, or the process was killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(measure_method, spec).result()
        except BrokenProcessPool as error:
            raise EngineError(
                f"the process that trained {spec.recipe.method!r} with batches of "
                f"{spec.recipe.batch_size} was killed, most likely for want of memory. Lower "
                "--batch-size or --num-frames, or leave the method out."
            ) from error


def measure_method(spec: TrainSpec) -> Measurement:
    """Train on one random batch, in this process, which should have done nothing else.

    Raises:
        ConfigError: The backbone does not load, or the recipe does not fit it.
        EngineError: The device is missing.
    """
    import torch

    from dgl_train.commands.options import choose_device
    from dgl_train.model.backbones.backbone import BackboneSource
    from dgl_train.model.backbones.registry import load_backbone
    from dgl_train.model.methods import trained_parameters
    from dgl_train.training.contrastive import PairBatch
    from dgl_train.training.processes import Processes
    from dgl_train.training.step import TrainingStep, make_model

    recipe, device = spec.recipe, choose_device(spec.device)
    torch.set_num_threads(spec.threads)
    start = _peak_bytes(device)
    backbone = load_backbone(BackboneSource(recipe.backbone, recipe.pretrained))
    model = make_model(recipe, backbone).model.to(device)
    step = TrainingStep(
        model,
        recipe,
        total_steps=WARM_UP + spec.steps,
        device=device,
        processes=Processes(),
    )
    batch = PairBatch(*_random_batch(recipe, model, device))
    seconds, loss = [], 0.0
    for number in range(WARM_UP + spec.steps):
        started = time.perf_counter()
        loss = step.take(number, batch).loss
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Measurement(
        device=torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(),
        trained_parameters=sum(p.numel() for p in trained_parameters(model).values()),
        step_s=seconds[WARM_UP:],
        loss=loss,
        start_bytes=start,
        peak_bytes=_peak_bytes(device),
    )


def _random_batch(
    recipe: Recipe, model: "DualEncoder", device: "torch.device"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Captions of the full length, int32 [B, L], and clips, uint8 [B, F, 3, S, S]."""
    import torch

    rng, bare = np.random.default_rng(SEED), model.tokenizer([""]).ids[0]
    shape = (recipe.batch_size, recipe.max_words)
    tokens = rng.integers(1, _SOME_WORDS, shape, dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = bare[0], bare[-1]
    size = model.inputs.frames.size
    shape_clips = (recipe.batch_size, recipe.num_frames, 3, size, size)
    frames = rng.integers(0, 256, shape_clips, dtype=np.uint8)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(frames).to(device)


def _peak_bytes(device: "torch.device") -> int:
    """The most memory that tensors on a GPU, or this process, have taken so far."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # ru_maxrss would begin with the peak of the process that started this one
        fields = dict(line.split(":", 1) for line in _STATUS.read_text("utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
