"""dgl-bench moments, index, serve and soak: searching one's own videos, from the folder to the service."""

from pathlib import Path

import click

from benchmarks.options import out_option, publish, read_sizes, threads_option
from dgl_runtime.command import Command
from dgl_runtime.commands.options import engine_option

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.command(cls=Command)
@bundle_argument
@click.option("--videos", type=click.IntRange(1), default=200, show_default=True)
@click.option(
    "--clips", type=click.IntRange(2), default=12, show_default=True, help="Joined in a video."
)
@click.option("--seed", type=int, default=0, show_default=True)
@out_option
def moments(bundle: Path, videos: int, clips: int, seed: int, out: Path) -> None:
    """Find planted moments of moving shapes: videos whole, in windows, and at their shots.

    BUNDLE was tuned on shapes, as demo.sh does.

    Example: dgl-bench moments demo/bundle --videos 200
    """
    from benchmarks.moments import MomentsSettings, bench_moments, make_report

    out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    settings = MomentsSettings(bundle, videos, clips, seed)
    publish(make_report(settings, bench_moments(settings)), out)


@click.command(cls=Command)
@bundle_argument
@click.option(
    "--videos",
    callback=read_sizes,
    default="10,20,40,80",
    show_default=True,
    help="Numbers of videos, with commas.",
)
@click.option(
    "--jobs",
    callback=read_sizes,
    default="1,2",
    show_default=True,
    help="Processes that decode, with commas.",
)
@threads_option
@out_option
def index(
    bundle: Path, videos: tuple[int, ...], jobs: tuple[int, ...], threads: int, out: Path
) -> None:
    """Clips indexed a second, who has the cores, and memory, against videos and jobs.

    Example: dgl-bench index bundle --videos 10,20,40 --jobs 1,2
    """
    from benchmarks.index import IndexSettings, bench_index, make_report
    from benchmarks.machine import load_average

    out.mkdir(parents=True, exist_ok=True)
    load = load_average()
    settings = IndexSettings(bundle, videos, jobs, threads)
    publish(make_report(settings, bench_index(settings), load), out)


clips_option = click.option(
    "--clips", type=click.IntRange(1), default=10_000, show_default=True, help="In the gallery."
)


@click.command(cls=Command)
@bundle_argument
@clips_option
@click.option(
    "--concurrency",
    callback=read_sizes,
    default="1,2,4,8,16,32,64",
    show_default=True,
    help="Clients at once, with commas.",
)
@click.option(
    "--seconds", type=click.IntRange(1), default=10, show_default=True, help="A measurement."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@threads_option
@engine_option
@out_option
def serve(
    bundle: Path,
    clips: int,
    concurrency: tuple[int, ...],
    seconds: int,
    rounds: int,
    threads: int,
    engine: str,
    out: Path,
) -> None:
    """Searches a second of dgl-serve against clients, batched and one by one; overload.

    Needs wrk (Debian: apt-get install wrk).

    Example: dgl-bench serve bundle --concurrency 1,8,32
    """
    from benchmarks.serve import ServeSettings, bench_serve
    from benchmarks.serve_report import make_report, write_plots

    out.mkdir(parents=True, exist_ok=True)
    settings = ServeSettings(
        bundle=bundle,
        clips=clips,
        concurrency=concurrency,
        seconds=seconds,
        rounds=rounds,
        threads=threads,
        engine=engine,
    )
    result = bench_serve(settings)
    publish(make_report(result, write_plots(result, out)), out)


@click.command(cls=Command)
@bundle_argument
@clips_option
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="At once.")
@click.option("--minutes", type=click.FloatRange(0.05), default=30, show_default=True)
@threads_option
@engine_option
@out_option
def soak(
    bundle: Path, clips: int, clients: int, minutes: float, threads: int, engine: str, out: Path
) -> None:
    """Memory of dgl-serve under mixed load: searches, pictures, videos, the page.

    Needs wrk (Debian: apt-get install wrk).

    Example: dgl-bench soak bundle --minutes 30
    """
    from benchmarks.serve import ServeSettings, bench_soak
    from benchmarks.serve_report import make_soak_report

    out.mkdir(parents=True, exist_ok=True)
    settings = ServeSettings(
        bundle=bundle,
        clips=clips,
        concurrency=(clients,),
        seconds=round(60 * minutes),
        rounds=1,
        threads=threads,
        engine=engine,
    )
    publish(make_soak_report(settings, bench_soak(settings)), out)
