"""dgl-bench experiments: the paper's experiments and the alternatives to DGL, on shapes, over seeds.

A run is one process: it trains, chooses its epoch on val, and evaluates on test once. What is finished is
kept, so an interrupted table is gone on with; runs under way resume where they were saved.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.variants import ALTERNATIVES, ORDER, PAPER
from dgl_train.model.checkpoint import replacing
from dgl_train.recipes.recipe import Recipe, read_recipe

DGL = {name: PAPER[name] for name in ("DGL-linear", "DGL-transformer")}
SUITES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "paper": {**PAPER, **ORDER},
    "alternatives": {**DGL, **ALTERNATIVES},
}
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class ExperimentRun:
    """One variant on one seed's clips and backbone."""

    variant: str
    seed: int
    recipe: Recipe
    shapes: Path
    run: Path
    threads: int


@dataclass(frozen=True)
class Outcome:
    """What a run gave; recalls and direction in percent, on the test split."""

    variant: str
    seed: int
    trained_parameters: int
    best_epoch: int
    step_s: float
    report: dict[str, Any]


def run_experiments(
    suite: str, folder: Path, *, seeds: int, jobs: int, threads: int, settings: Sequence[str]
) -> list[Outcome]:
    """Run all variants of a suite, and the untuned backbone, on every seed.

    Args:
        suite: One of SUITES.
        folder: Where shapes, backbones and runs lie; what is there is used.
        seeds: How many, from 0.
        jobs: Runs at once.
        threads: Of each run.
        settings: KEY=VALUE for all variants, as dgl-train's.
    """
    for seed in range(seeds):
        _make_shapes(folder / f"shapes{seed}", seed)
    runs = [
        _plan(variant, overrides, folder, seed, threads, settings)
        for seed in range(seeds)
        for variant, overrides in {ZERO_SHOT: (), **SUITES[suite]}.items()
    ]
    outcomes: dict[tuple[str, int], Outcome] = {}
    started = time.monotonic()
    for number, outcome in enumerate(_finish_all(runs, jobs), start=1):
        outcomes[outcome.variant, outcome.seed] = outcome
        click.echo(
            f"{number} of {len(runs)}, {(time.monotonic() - started) / 60:.0f} min: "
            f"{outcome.variant}, seed {outcome.seed}: "
            f"R@1 {outcome.report['text_to_video']['r1']:.1f}",
            err=True,
        )
    return [outcomes[run.variant, run.seed] for run in runs]


def _finish_all(runs: Sequence[ExperimentRun], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come; the first fault ends all that has not begun."""
    context = multiprocessing.get_context("spawn")
    # A process a run: memory and random state of one leave no trace in the next.
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        try:
            for done in as_completed([pool.submit(finish_run, run) for run in runs]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_shapes(folder: Path, seed: int) -> None:
    from dgl_train.shapes.backbone import make_backbone
    from dgl_train.shapes.clips import make_shapes

    make_shapes(folder, seed=seed)
    make_backbone(folder / "backbone", seed=seed)


def _plan(
    variant: str,
    overrides: Sequence[str],
    folder: Path,
    seed: int,
    threads: int,
    settings: Sequence[str],
) -> ExperimentRun:
    shapes = folder / f"shapes{seed}"
    own = [f"backbone={(shapes / 'backbone').resolve()}", f"training_seed={seed}"]
    recipe = read_recipe("shapes", [*own, *settings, *overrides])
    name = "".join(sign if sign.isalnum() else "-" for sign in variant)
    # With other settings it is another run, beside this one.
    name += "-" + hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
    return ExperimentRun(variant, seed, recipe, shapes, folder / f"runs{seed}" / name, threads)


def finish_run(run: ExperimentRun) -> Outcome:
    """Train and evaluate, unless that was done before with the same recipe.

    What the code was then is not asked: after a change of it, give another folder.
    """
    import torch

    torch.set_num_threads(run.threads)
    done = run.run.with_suffix(".json")
    if done.exists():
        return Outcome(**json.loads(done.read_text("utf-8")))
    outcome = _measure(run)
    run.run.parent.mkdir(parents=True, exist_ok=True)
    with replacing(done) as temporary:
        temporary.write_text(json.dumps(asdict(outcome)), "utf-8")
    return outcome


def _measure(run: ExperimentRun) -> Outcome:
    import torch

    from dgl_train.data.datasets import read_dataset, select_split
    from dgl_train.evaluation.evaluate import evaluate, torch_encoders
    from dgl_train.model.backbones.backbone import BackboneSource
    from dgl_train.model.backbones.registry import load_backbone
    from dgl_train.model.checkpoint import load_checkpoint
    from dgl_train.model.dual_encoder import FrameMeanModel
    from dgl_train.model.methods import trained_parameters
    from dgl_train.training.fit import fit

    device, recipe = torch.device("cpu"), run.recipe
    clips = read_dataset("shapes", run.shapes)
    backbone = load_backbone(BackboneSource(recipe.backbone))
    trained, epoch, step_s = 0, 0, 0.0
    if run.variant == ZERO_SHOT:
        inputs = backbone.inputs_of(recipe.num_frames, recipe.max_words)
        model: Any = FrameMeanModel(backbone, inputs)
    else:
        result = fit(
            recipe,
            select_split(clips, "train", "shapes"),
            select_split(clips, "val", "shapes"),
            run.run,
            backbone=backbone,
            device=device,
            resume=(run.run / "resume.pt").exists(),
            progress_bar=False,
        )
        model = load_checkpoint(run.run).model
        trained = sum(tensor.numel() for tensor in trained_parameters(model).values())
        epoch, step_s = result.best_epoch, _seconds_a_step(run.run)
    encoders = torch_encoders(model, device)
    report = evaluate(encoders, select_split(clips, "test", "shapes"), progress=False)
    return Outcome(run.variant, run.seed, trained, epoch, step_s, asdict(report))


def _seconds_a_step(run: Path) -> float:
    """Median over epochs, waiting for clips left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = lines[0]["step"]
    seconds = sorted((line["training_s"] - line["waited_for_clips_s"]) / steps for line in lines)
    return float(seconds[len(seconds) // 2])
