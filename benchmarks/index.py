"""dgl-bench index: clips a second, who has the cores, and memory, against the numbers of videos and of jobs."""

import datetime
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.decode_clips import MadeClip, write_clip
from benchmarks.machine import describe_machine
from benchmarks.processes import children, resident_bytes
from benchmarks.report import Report, Table
from dgl_runtime.errors import EngineError

CLIP = MadeClip("360p", "short", 10)
WINDOW_S = 5.0
_LOOK_EVERY_S = 0.1
_RUN = """
import json, sys, time
from dgl_runtime import Retriever
bundle, videos, gallery, jobs, threads, window = sys.argv[1:]
with Retriever(bundle, gallery, threads=int(threads)) as retriever:
    retriever.chosen("clips")  # loaded, and chosen among engines, before the clock starts
    done = retriever.add_videos([videos], window_s=float(window), jobs=int(jobs))
print(json.dumps([done.clips_added, done.encoding_s, done.waiting_s, time.process_time()]))
"""


@dataclass(frozen=True)
class IndexSettings:
    """What to measure."""

    bundle: Path
    videos: tuple[int, ...]
    jobs: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class IndexRun:
    """One run of indexing in a process of its own.

    Attributes:
        videos: In the folder.
        jobs: Processes that decode.
        clips: Added.
        seconds: Of the whole run.
        encoding_s: In which the encoder ran.
        waiting_s: In which it waited for clips.
        main_cpu_s: Of the process that encodes.
        decode_cpu_s: Of those that decode.
        main_bytes: The most that was resident in the process that encodes.
        decode_bytes: The most in the others together.
    """

    videos: int
    jobs: int
    clips: int
    seconds: float
    encoding_s: float
    waiting_s: float
    main_cpu_s: float
    decode_cpu_s: float
    main_bytes: int
    decode_bytes: int


def bench_index(settings: IndexSettings) -> list[IndexRun]:
    """Measure every number of videos with every number of jobs.

    Raises:
        EngineError: A run failed.
    """
    runs = []
    with TemporaryDirectory() as folder:
        for count in settings.videos:
            videos = make_videos(Path(folder) / f"videos{count}", count)
            for jobs in settings.jobs:
                click.echo(f"{count} videos, {jobs} jobs", err=True)
                gallery = Path(folder) / f"gallery{count}-{jobs}"
                runs.append(_run(settings, videos, gallery, jobs))
    return runs


def make_videos(folder: Path, count: int) -> Path:
    """Videos alike but for their last bytes, so that each counts as a content of its own."""
    folder.mkdir()
    original = folder / "0.mp4"
    write_clip(original, CLIP)
    data = original.read_bytes()
    for number in range(1, count):
        free = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (folder / f"{number}.mp4").write_bytes(data + free)
    return folder


def _run(settings: IndexSettings, videos: Path, gallery: Path, jobs: int) -> IndexRun:
    arguments = [settings.bundle, videos, gallery, jobs, settings.threads, WINDOW_S]
    before_s, started = _cpu_s_of_children(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    memory = {"main": 0, "decode": 0}
    while process.poll() is None:
        memory["main"] = max(memory["main"], resident_bytes(process.pid))
        memory["decode"] = max(memory["decode"], sum(map(resident_bytes, children(process.pid))))
        time.sleep(_LOOK_EVERY_S)
    seconds = time.perf_counter() - started
    said, _ = process.communicate()
    if process.returncode:
        raise EngineError(
            f"the run that indexed {videos} failed with exit code {process.returncode}."
        )
    clips, encoding_s, waiting_s, main_cpu_s = json.loads(said.splitlines()[-1])
    all_cpu_s = _cpu_s_of_children() - before_s
    return IndexRun(
        videos=sum(1 for _ in videos.iterdir()),
        jobs=jobs,
        clips=clips,
        seconds=seconds,
        encoding_s=encoding_s,
        waiting_s=waiting_s,
        main_cpu_s=main_cpu_s,
        decode_cpu_s=all_cpu_s - main_cpu_s,
        main_bytes=memory["main"],
        decode_bytes=memory["decode"],
    )


def _cpu_s_of_children() -> float:
    """User and system time of all processes that have ended, with those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_report(settings: IndexSettings, runs: Sequence[IndexRun], load: float | None) -> Report:
    """A table for people, every number for programs."""
    columns = [
        "videos",
        "jobs",
        "clips",
        "clips/s",
        "encoder waited",
        "CPU of decoding",
        "CPU of encoding",
    ]
    columns += ["encoder MB", "decoders MB"]
    rows = []
    for one in runs:
        total_s = one.main_cpu_s + one.decode_cpu_s
        rows.append(
            [
                str(one.videos),
                str(one.jobs),
                str(one.clips),
                f"{one.clips / (one.encoding_s + one.waiting_s):.2f}",
                f"{100 * one.waiting_s / (one.encoding_s + one.waiting_s):.0f}%",
                f"{100 * one.decode_cpu_s / total_s:.0f}%",
                f"{100 * one.main_cpu_s / total_s:.0f}%",
                f"{one.main_bytes / 1e6:.0f}",
                f"{one.decode_bytes / 1e6:.0f}",
            ]
        )
    return Report(
        name="index",
        title="Indexing",
        date=datetime.date.today().isoformat(),
        machine=describe_machine(),
        settings={
            "bundle": settings.bundle.name,
            "threads": settings.threads,
            "video": CLIP.name,
            "window_s": WINDOW_S,
        },
        tables=[Table("Clips a second, cores and memory", columns, rows)],
        notes=[
            "Each run in a process of its own; the processes that decode are its children. Encoder waited: of "
            "the time from the first video to the last clip.",
            "CPU: share of the user and system time of all of them. MB: the most resident, looked at ten "
            "times a second; of several decoders the sum, shared libraries counted in each.",
            f"Load average before the run: {load}.",
        ],
        data={"runs": [asdict(one) for one in runs], "load_before": load},
    )
