"""dgl-bench index: clips a second, cores and memory, against videos, jobs and the overlap of windows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from dgl_bench.command import Threads, benchmark, say
from dgl_bench.made_clips import MadeClip, write_clip
from dgl_bench.processes import resident_bytes
from dgl_bench.report import Report, Row, Table
from dgl_runtime.errors import EngineError

CLIP = MadeClip("360p", "short", 10)
WINDOW_S = 5.0
_LOOK_EVERY_S = 0.1
_RUN = """
import json, sys, time
from dgl_runtime import Retriever
bundle, videos, gallery, jobs, engine, threads, window = sys.argv[1:]
with Retriever(bundle, gallery, engine=engine, threads=int(threads)) as retriever:
    retriever.chosen("clip_encoder")  # loaded, and chosen among engines, before the clock starts
    done = retriever.add_videos([videos], window_s=float(window), jobs=int(jobs))
print(json.dumps([done.clips_added, done.encoding_s, done.waiting_s, time.process_time()]))
"""


@benchmark
def index(
    bundle: Path,
    videos: Annotated[tuple[int, ...], "Numbers of videos, with commas."] = (10, 20, 40, 80),
    jobs: Annotated[tuple[int, ...], "Processes that decode, with commas."] = (1, 2),
    engine: Annotated[Literal["auto", "onnx", "openvino"], "As dgl-index's."] = "auto",
    threads: Threads = 2,
) -> Report:
    """Clips indexed a second, who has the cores, and memory, against videos and jobs.

    Of an untuned model also overlapping windows, with and without the frames that they share.

    Example: dgl-bench index bundle --videos 10,20,40 --jobs 1,2
    """
    from dgl_bench.overlap import BATCH, WINDOWS, overlapping_rows
    from dgl_runtime.encoder.encoder import Encoder

    rows = []
    with TemporaryDirectory() as folder:
        for count in videos:
            made = make_videos(Path(folder) / f"videos{count}", count)
            for some in jobs:
                say(f"{count} videos, {some} jobs")
                gallery = Path(folder) / f"gallery{count}-{some}"
                about = {"videos": count, "jobs": some}
                rows.append(about | _run([bundle, made, gallery, some, engine, threads]))
    overlapping = list(overlapping_rows(Encoder(bundle, engine=engine, threads=threads)))
    return Report(
        name="index-untuned" if overlapping else "index",  # which encodes a frame seen before once
        title="Indexing",
        tables=[
            Table("Clips a second, cores and memory", rows),
            Table("Overlapping windows", overlapping),
        ],
        settings={"video": CLIP.name, "window_s": WINDOW_S},
        wrong=[wrong for one in overlapping if (wrong := one.pop("wrong"))],
        notes=[
            "Each run in a process of its own; the processes that decode are its children. Encoder waited: of "
            "the time from the first video to the last clip.",
            "CPU: share of the user and system time of all of them. MB: the most resident, looked at ten "
            "times a second; of several decoders the sum, shared libraries counted in each.",
            f"Overlapping windows: the encoder alone, {WINDOWS} windows of noise in batches of {BATCH}, none "
            "of its frames known before; both ways take turns. MB: the most resident of this process.",
        ],
    )


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


def _run(arguments: list[object]) -> Row:
    """One run of indexing in a process of its own; the arguments are those of ``_RUN``."""
    before_s, started = sum(os.times()[2:4]), time.perf_counter()
    command = [sys.executable, "-c", _RUN, *map(str, arguments), str(WINDOW_S)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    encoder_bytes = decoder_bytes = 0
    while process.poll() is None:
        encoder, decoders = resident_bytes(process.pid)
        encoder_bytes, decoder_bytes = max(encoder_bytes, encoder), max(decoder_bytes, decoders)
        time.sleep(_LOOK_EVERY_S)
    seconds = time.perf_counter() - started
    said, _ = process.communicate()
    if process.returncode:
        raise EngineError(f"a run of indexing failed with exit code {process.returncode}.")
    clips, encoding_s, waiting_s, encoder_s = json.loads(said.splitlines()[-1])
    all_s = sum(os.times()[2:4]) - before_s
    return {
        "clips": clips,
        "clips/s": clips / (encoding_s + waiting_s),
        "encoder waited, %": 100 * waiting_s / (encoding_s + waiting_s),
        "CPU of decoding, %": 100 * (all_s - encoder_s) / all_s,
        "CPU of encoding, %": 100 * encoder_s / all_s,
        "CPU s": all_s,
        "run s": seconds,
        "encoder MB": encoder_bytes / 1e6,
        "decoders MB": decoder_bytes / 1e6,
    }
