"""dgl-bench: one subcommand a question; heavy imports happen when one runs."""

from pathlib import Path

import click

from benchmarks.encode_cli import METHODS, encode, operators
from benchmarks.library_cli import index, moments, serve, soak
from benchmarks.options import (
    backbone_option,
    out_option,
    pretrained_option,
    publish,
    read_sizes,
    threads_option,
)
from dgl_runtime.command import Command, fail
from dgl_runtime.engines.opening import DEVICES, ENGINES
from dgl_train.commands.options import data_root_option, dataset_option, device_option

SUITES = ("paper", "alternatives")  # benchmarks.experiments.SUITES, without importing torch


@click.group()
def bench() -> None:
    """Measure, side by side: all variants in every round, equality checked after the timing."""


@bench.command(cls=Command)
@backbone_option
@pretrained_option
@click.option(
    "--methods",
    default=",".join(METHODS),
    show_default=True,
    help="As dgl-train's, or vpt; with commas.",
)
@click.option("--batch-size", type=click.IntRange(2), default=8, show_default=True)
@click.option("--num-frames", type=click.IntRange(1), default=12, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="A process.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As dgl-train's.")
@threads_option
@device_option
@out_option
def train(
    backbone: str,
    pretrained: str,
    methods: str,
    batch_size: int,
    num_frames: int,
    steps: int,
    rounds: int,
    overrides: tuple[str, ...],
    threads: int,
    device: str,
    out: Path,
) -> None:
    """Time and memory of a training step, each method in processes of its own.

    Example: dgl-bench train --methods dgl-linear,dgl-transformer --batch-size 8
    """
    from benchmarks.train_memory import TrainSpec, bench_train
    from benchmarks.train_report import make_report
    from dgl_train.recipes.recipe import read_recipe

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    settings = [
        f"backbone={backbone}",
        f"pretrained={pretrained}",
        f"batch_size={batch_size}",
        f"num_frames={num_frames}",
        *overrides,
    ]
    specs = {
        method: TrainSpec(
            read_recipe("default", [*settings, *_settings_of(method)]), steps, threads, device
        )
        for method in methods.split(",")
    }
    publish(make_report(bench_train(specs, rounds)), out)


@bench.command(cls=Command)
@click.option(
    "--clips",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the clips, some 300 MB, made unless they are there; default: among the caches.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Two small clips only.")
@threads_option
@out_option
def decode(clips: Path | None, rounds: int, quick: bool, threads: int, out: Path) -> None:
    """Time to read 12 frames of a clip: ours, decord2, OpenCV and torchcodec.

    Example: dgl-bench decode --threads 1
    """
    from benchmarks.decode import bench_decode
    from benchmarks.decode_clips import MADE, QUICK, fetch_real_clips, make_clips
    from benchmarks.decode_report import make_report
    from dgl_runtime.cache_folder import cache_folder

    out.mkdir(parents=True, exist_ok=True)
    folder = clips or cache_folder() / "bench_clips"
    paths = make_clips(folder, QUICK if quick else MADE)
    paths += [] if quick else fetch_real_clips(folder)
    publish(make_report(bench_decode(paths, threads=threads, rounds=rounds)), out)


@bench.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(ENGINES),
    help="May be repeated; default: every one that is installed.",
)
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@threads_option
@out_option
def startup(
    bundle: Path, engines: tuple[str, ...], device: str, rounds: int, threads: int, out: Path
) -> None:
    """Time from an empty process to the first query and clip, and the size of installations.

    A bundle with random weights will do: dgl-export --zero-shot --backbone ViT-B-32-quickgelu.

    Example: dgl-bench startup bundle --rounds 7
    """
    from benchmarks.startup import bench_startup
    from benchmarks.startup_report import make_report

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    result = bench_startup(
        bundle, engines or ENGINES, device=device, threads=threads, rounds=rounds
    )
    publish(make_report(result), out)


@bench.command("all", cls=Command)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="For startup; made with random weights for this run without.",
)
@click.option(
    "--demo",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="What demo.sh made, for quality.",
)
@click.option("--quick", is_flag=True, help="A few rounds: whether it runs, not how fast.")
@out_option
def run_everything(bundle: Path | None, demo: Path, quick: bool, out: Path) -> None:
    """Run encode, decode, search, startup, quality and train, one after another.

    One that fails does not stop the others; the exit code is then 1.

    Example: dgl-bench all --out results --quick
    """
    from tempfile import TemporaryDirectory

    from benchmarks.all import run_all, summary

    with TemporaryDirectory() as folder:
        outcomes = run_all(out, bundle or Path(folder) / "bundle", demo, quick=quick)
    click.echo(summary(outcomes))
    if failed := [one.name for one in outcomes if one.exit_code]:
        fail(f"{', '.join(failed)} failed; what each said stands above.")


@bench.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@dataset_option
@data_root_option
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True
)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@out_option
def quality(
    run: Path, dataset: str, data_root: Path | None, split: str, rounds: int, out: Path
) -> None:
    """Export RUN to every format and precision; what each retrieves on a split, and how fast.

    Example: dgl-bench quality demo/run --dataset shapes --data-root demo/shapes
    """
    from benchmarks.quality import QualitySettings, bench_quality, make_report, write_plot

    out.mkdir(parents=True, exist_ok=True)
    settings = QualitySettings(run, dataset, data_root, split, rounds)
    results = bench_quality(settings)
    publish(make_report(settings, results, write_plot(results, out)), out)


@bench.command(cls=Command)
@click.argument("suite", type=click.Choice(SUITES))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at once.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="For all variants.")
@out_option
def experiments(
    suite: str,
    folder: Path,
    seeds: int,
    jobs: int,
    threads: int,
    settings: tuple[str, ...],
    out: Path,
) -> None:
    """The paper's experiments, or the alternatives to DGL, on shapes made in FOLDER.

    What FOLDER holds from an earlier call is used again. About a minute and a half a run and core.

    \b
    Example:
      dgl-bench experiments paper experiments --seeds 3
      dgl-bench experiments alternatives experiments --seeds 1 --set epochs=6
    """  # noqa: D301 - click's own marker
    from benchmarks.experiments import run_experiments
    from benchmarks.experiments_report import make_report

    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_experiments(
        suite, folder, seeds=seeds, jobs=jobs, threads=threads, settings=settings
    )
    described = {"seeds": seeds, "jobs": jobs, "threads": threads, "set": " ".join(settings) or "-"}
    publish(make_report(suite, outcomes, described), out)


@bench.command(cls=Command)
@click.option(
    "--sizes",
    callback=read_sizes,
    default="10000,100000,1000000",
    show_default=True,
    help="Numbers of clips, with commas.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=300, show_default=True, help="Queries timed."
)
@out_option
def search(sizes: tuple[int, ...], rounds: int, out: Path) -> None:
    """Ours, FAISS and hnswlib on one thread: latency, recall, building, opening, memory.

    A million clips take 10 GB of disk under TMPDIR, 5 GB of memory and an hour or two.

    Example: dgl-bench search --sizes 10000,100000 --rounds 300
    """
    from benchmarks.search import SearchSettings, bench_search
    from benchmarks.search_report import make_report, write_plots

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    result = bench_search(SearchSettings(sizes, rounds))
    publish(make_report(result, write_plots(result, out)), out)


def _settings_of(method: str) -> tuple[str, ...]:
    from benchmarks.variants import ALTERNATIVES

    return ALTERNATIVES.get(method, (f"method={method}",))


@bench.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
def demo(folder: Path) -> None:
    """Show what demo.sh made in FOLDER: recall before and after tuning, parity, query latency.

    Example: dgl-bench demo demo
    """
    from benchmarks.demo import demo_table

    click.echo(demo_table(folder))


for command in (encode, operators, index, moments, serve, soak):
    bench.add_command(command)
