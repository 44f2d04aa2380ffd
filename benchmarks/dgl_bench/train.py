"""dgl-bench train: what a training step of each method costs in time and memory.

A process's peak memory never falls, so every measurement has a fresh process. Methods take turns over
the rounds, so that what the machine does meanwhile is not always paid by the same one. Frames and captions
are random and ready in memory: reading videos is not part of it, and neither cost depends on pixels.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import click
import numpy as np

from dgl_bench.command import Backbone, Pretrained, Threads, benchmark
from dgl_bench.encode import METHODS
from dgl_bench.processes import apart, memory_bytes
from dgl_bench.report import Report, Row, Table
from dgl_bench.timing import Spread, in_turn
from dgl_runtime.engines.hardware import cpu_model
from dgl_train.commands.options import device_option

if TYPE_CHECKING:
    import torch

    from dgl_train.model.dual_encoder import DualEncoder
    from dgl_train.recipes.recipe import Recipe
    from dgl_train.training.gradient_cache import PairBatch

WARM_UP = 1  # steps; the first one also makes the optimizer's state
SEED = 0
_SOME_WORDS = 500  # ids below it are words of every vocabulary
VPT = ("method=unshared", "global_prompts=0", "visual_output=mean-frames", "caption_prompts=0")
_REMEDY = "Lower --batch-size or --num-frames, or leave the method out."


@benchmark
@device_option
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As dgl-train's.")
def train(
    overrides: tuple[str, ...],
    device: str,
    backbone: Backbone = "ViT-B-32-quickgelu",
    pretrained: Pretrained = "",
    methods: Annotated[str, "As dgl-train's, or vpt; with commas."] = ",".join(METHODS),
    batch_size: int = 8,
    num_frames: int = 12,
    steps: Annotated[int, "A process."] = 5,
    rounds: int = 3,
    threads: Threads = 2,
) -> Report:
    """Time and memory of a training step, each method in processes of its own.

    Example: dgl-bench train --methods dgl-linear,dgl-transformer --batch-size 8
    """
    from dgl_train.recipes.recipe import read_recipe

    settings = [f"backbone={backbone}", f"pretrained={pretrained}", f"batch_size={batch_size}"]
    settings += [f"num_frames={num_frames}", *overrides]
    calls = {}
    for method in methods.split(","):
        own = VPT if method == "vpt" else (f"method={method}",)
        recipe = read_recipe("default", [*settings, *own])
        calls[method] = partial(apart, partial(measure, recipe, steps, threads, device), _REMEDY)
    measured = in_turn(calls, rounds, "processes")
    return Report(
        name="train",
        title="Time and memory of a training step",
        tables=[Table("A training step", [row_of(*one) for one in measured.items()])],
        settings={"max_tokens": recipe.max_tokens, "warm_up": WARM_UP},
        notes=[
            "Every measurement has a fresh process; every round measures every method once, in turn. Seconds: "
            "median (p10 to p90) over the steps of all rounds.",
            "A step: forward, backward and optimizer on one random batch in memory, with captions of the "
            "full length. Reading videos and tokenizing are not part of it.",
            "Memory: the process's peak less its peak before the backbone was read; process: all of it. On a "
            "GPU both are the peak of torch's tensors. Medians over rounds, 1e9 bytes.",
        ],
    )


def row_of(method: str, measured: Sequence[Row]) -> Row:
    """A method's measurements, one for each round."""
    peaks = np.array([one["peak_bytes"] for one in measured])
    added = peaks - np.array([one["start_bytes"] for one in measured])
    return {
        "method": method,
        "device": measured[0]["device"],
        "trained": measured[0]["trained"],
        "s a step": Spread.of([seconds for one in measured for seconds in one["step_s"]]),
        "memory GB": float(np.median(added)) / 1e9,
        "process GB": float(np.median(peaks)) / 1e9,
        "measured": list(measured),
    }


def measure(recipe: "Recipe", steps: int, threads: int, device_name: str) -> Row:
    """Train on one random batch, in this process, which should have done nothing else.

    Returns:
        The device it computed on, numbers that are trained, seconds of each step after the warm-up, the loss
        of the last, and peak memory before the backbone was read and at the end.
    """
    import torch

    from dgl_train.commands.options import choose_device
    from dgl_train.model.backbones.backbone import BackboneSource
    from dgl_train.model.backbones.registry import load_backbone
    from dgl_train.model.methods import trained_parameters
    from dgl_train.training.processes import Processes
    from dgl_train.training.step import TrainingStep, make_model

    device = choose_device(device_name)
    torch.set_num_threads(threads)
    start = _peak_bytes(device)
    backbone = load_backbone(BackboneSource(recipe.backbone, recipe.pretrained))
    model = make_model(recipe, backbone).model.to(device)
    total = WARM_UP + steps
    step = TrainingStep(model, recipe, total_steps=total, device=device, processes=Processes())
    batch = _random_batch(recipe, model, device)
    seconds, loss = [], 0.0
    for number in range(total):
        started = time.perf_counter()
        loss = step.take(number, batch).loss
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(),
        "trained": sum(one.numel() for one in trained_parameters(model).values()),
        "step_s": seconds[WARM_UP:],
        "loss": loss,
        "start_bytes": start,
        "peak_bytes": _peak_bytes(device),
    }


def _random_batch(recipe: "Recipe", model: "DualEncoder", device: "torch.device") -> "PairBatch":
    """Captions of the full length, int32 [B, L], and clips, uint8 [B, F, 3, S, S]."""
    import torch

    from dgl_train.training.gradient_cache import PairBatch

    rng, bare = np.random.default_rng(SEED), model.tokenizer([""]).ids[0]
    size, side = recipe.batch_size, model.inputs.frames.size
    tokens = rng.integers(1, _SOME_WORDS, (size, recipe.max_tokens), dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = bare[0], bare[-1]
    shape = (size, recipe.num_frames, 3, side, side)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    return PairBatch(torch.from_numpy(tokens).to(device), torch.from_numpy(frames).to(device))


def _peak_bytes(device: "torch.device") -> int:
    """The most memory that tensors on a GPU, or this process, have taken so far."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss would begin with the peak of the process that started this one.
    if (peak := memory_bytes("VmHWM")) is not None:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
