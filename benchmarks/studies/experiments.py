"""The paper's experiments and the alternatives to DGL, on shapes, over seeds, by the project's own commands.

    python benchmarks/studies/experiments.py paper FOLDER --set epochs=16

A run trains, chooses its epoch on val, and is evaluated on test once. What is finished is kept, so an
interrupted table is gone on with; runs under way resume where they were saved.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click

from dgl_bench.command import benchmark, say
from dgl_bench.report import Report, Row, Table, mean_and_spread
from dgl_runtime.errors import EngineError
from dgl_train.model.checkpoint import load_checkpoint, replacing
from dgl_train.model.methods import trained_parameters

SUITES: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_name("variants.toml").read_text("utf-8")
)
ZERO_SHOT = "zero-shot"
Outcome = dict[str, Any]  # the report of dgl-eval, numbers that were trained, and seconds a step


@dataclass(frozen=True)
class Run:
    """One variant on one seed's clips and backbone."""

    folder: Path
    shapes: Path
    settings: tuple[str, ...]
    threads: int


@benchmark
@click.argument("suite", type=click.Choice(list(SUITES)))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="For all variants.")
def main(
    suite: str,
    folder: Path,
    settings: tuple[str, ...],
    seeds: int = 3,
    jobs: Annotated[int, "Runs at once."] = 2,
    threads: Annotated[int, "Of a run."] = 1,
) -> Report:
    """The paper's experiments, or the alternatives to DGL, on shapes made in FOLDER.

    What FOLDER holds from an earlier call is used again. About a minute and a half a run and core.

    Example: python benchmarks/studies/experiments.py paper experiments --seeds 3
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in (ZERO_SHOT, *SUITES[suite])}
    for seed in range(seeds):
        shapes, shared = folder / f"shapes{seed}", (*settings, f"training_seed={seed}")
        if not (shapes / "backbone").is_dir():
            command("dgl-shapes", threads, shapes, "--seed", seed)
        runs = {
            name: plan(name, shapes, (*shared, *own), threads)
            for name, own in SUITES[suite].items()
        }
        with ThreadPoolExecutor(jobs) as pool:
            for name, outcome in zip(runs, pool.map(finish, runs.values()), strict=True):
                outcomes[name].append({"seed": seed, **outcome})
        untuned = evaluated(next(iter(runs.values())), "--zero-shot")
        outcomes[ZERO_SHOT].append({"seed": seed, "trained": 0, "step_s": 0.0, "report": untuned})
    return report_of(suite, outcomes)


def plan(variant: str, shapes: Path, settings: tuple[str, ...], threads: int) -> Run:
    """With other settings it is another run, beside this one."""
    name = "".join(sign if sign.isalnum() else "-" for sign in variant)
    name += "-" + hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return Run(
        shapes.with_name(shapes.name.replace("shapes", "runs")) / name, shapes, settings, threads
    )


def finish(run: Run) -> Outcome:
    """Train and evaluate, unless that was done before with the same settings.

    What the code was then is not asked: after a change of it, give another folder.
    """
    done = run.folder.with_suffix(".json")
    if not done.exists():
        options = [part for one in run.settings for part in ("--set", one)]
        options += ["--resume"] if (run.folder / "resume.pt").exists() else []
        data = ("--dataset", "shapes", "--data-root", run.shapes)
        command("dgl-train", run.threads, *data, "--out", run.folder, *options)
        tensors = trained_parameters(load_checkpoint(run.folder).model).values()
        outcome: Outcome = {"trained": sum(tensor.numel() for tensor in tensors)}
        outcome |= {"step_s": seconds_a_step(run.folder), "report": evaluated(run)}
        with replacing(done) as temporary:
            temporary.write_text(json.dumps(outcome), "utf-8")
    return dict(json.loads(done.read_text("utf-8")))


def evaluated(run: Run, *options: str) -> Any:  # noqa: ANN401 - JSON
    """What dgl-eval reports of a run on the test split."""
    data = ("--dataset", "shapes", "--data-root", run.shapes, "--json")
    return json.loads(command("dgl-eval", run.threads, run.folder, *data, *options))


def command(name: str, threads: int, *arguments: object) -> str:
    """Run one of our commands; what it prints on stdout."""
    told = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    say(" ".join(told))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise EngineError(f"{name} failed with exit code {done.returncode}.")
    return done.stdout


def seconds_a_step(run: Path) -> float:
    """Median over epochs, waiting for clips left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = lines[0]["step"]
    waited = [(line["training_s"] - line["waited_for_clips_s"]) / steps for line in lines]
    return float(statistics.median(waited))


def report_of(suite: str, outcomes: dict[str, list[Outcome]]) -> Report:
    """The table of a suite, and the settings of every variant."""
    rows: list[Row] = []
    for variant, own in outcomes.items():
        reports = [one["report"] for one in own]

        def told(way: str, figure: str, reports: list[Any] = reports) -> str:
            return mean_and_spread([one[way][figure] for one in reports])

        row: Row = {"variant": variant, "trained": own[0]["trained"]}
        row |= {f"T2V R@{k}": told("text_to_video", f"r{k}") for k in (1, 5, 10)}
        row["V2T R@1"] = told("video_to_text", "r1")
        row["direction"] = mean_and_spread([one["direction_score"] for one in reports])
        row["s a step"] = statistics.median(one["step_s"] for one in own)
        rows.append({**row, "outcomes": own})
    flags = [
        {"variant": variant, "dgl-train": " ".join(f"--set {one}" for one in overrides)}
        for variant, overrides in SUITES[suite].items()
    ]
    return Report(
        name=f"experiments-{suite}",
        title=f"Experiments on shapes: {suite}",
        tables=[Table("shapes, test split", rows), Table("Settings, beside the recipe", flags)],
        notes=[
            "Mean and sample standard deviation over seeds; each seed has its own clips, backbone and "
            "order of training. The epoch is chosen on val, test is looked at once.",
            "Direction: percent of clips closer to their caption than to that of the reversed event (50 for "
            "a model blind to order). One figure at 256 queries has a standard error of about 3 points.",
            "Learning rates of the alternatives: chosen on val of seed 0 among two or three, as "
            "variants.toml says. DGL's is the recipe's, chosen on val as well.",
            "Seconds a step: median, several runs at once on the machine; compare within the table.",
        ],
    )


if __name__ == "__main__":
    main()
