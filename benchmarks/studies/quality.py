"""What every format and precision of a tuned model retrieves, and how fast.

python benchmarks/studies/quality.py demo/run --dataset shapes --data-root demo/shapes
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from dgl_bench.command import benchmark, say
from dgl_bench.report import Plot, Report, Row, Table
from dgl_bench.timing import Spread, time_paired
from dgl_export.bundle_writer import write_bundle
from dgl_export.calibration import read_calibration
from dgl_export.formats import FLOAT32_ONNX, WRITTEN, Target
from dgl_export.quality import Embeddings, compare
from dgl_export.request import tuned_request
from dgl_runtime.errors import DglError
from dgl_train.commands.options import data_root_option, dataset_option
from dgl_train.data.datasets import read_dataset, select_split
from dgl_train.evaluation import evaluate

TORCH = "torch, as trained"
# On this machine's CPU; bf16 in ONNX Runtime and TensorRT's formats need a GPU.
TARGETS = {
    f"{form} {precision}": Target(form, precision)
    for form in ("onnx", "openvino")
    for precision in WRITTEN[form]
    if (form, precision) != ("onnx", "bf16")
}
QUERY = "a red circle moves left over a dark background"


@benchmark
@dataset_option
@data_root_option
def main(
    run: Path,
    dataset: str,
    data_root: Path | None,
    split: Literal["train", "val", "test"] = "test",
    rounds: int = 30,
) -> Report:
    """Export RUN to every format and precision; what each retrieves on a split, and how fast.

    Example: python benchmarks/studies/quality.py demo/run --dataset shapes --data-root demo/shapes
    """
    clips = select_split(read_dataset(dataset, data_root), split, dataset)
    rows: dict[str, Row] = {}
    ready: dict[str, evaluate.Encoders] = {}
    exact = None
    with TemporaryDirectory() as folder:
        for name, encoders, row in opened(run, dataset, data_root, Path(folder)):
            rows[name] = {"model": name, **row}
            if encoders is None:
                continue
            say(f"{name}: evaluating")
            embedded = evaluate.embed_dataset(encoders, clips)
            ours = Embeddings(embedded.captions, embedded.clips)
            exact = exact or ours
            cost, found = compare(ours, exact, embedded.caption_clip), evaluate.report(embedded)
            recall = found.text_to_video
            rows[name] |= {"R@1": recall.r1, "R@5": recall.r5, "R@10": recall.r10}
            rows[name]["same first clip, %"] = 100 * cost.top1_agreement
            rows[name]["smallest cosine"] = cost.min_cosine
            ready[name] = encoders
        for task, times in timed(ready, rounds).items():
            for name, spread in times.items():
                rows[name] |= {f"{task} ms": spread}
    table = list(rows.values())
    return Report(
        name="quality",
        title="Retrieval of every format and precision",
        tables=[Table("Text to video", table)],
        plots=[Plot("clip", "R@1 against the time of a clip", "clip ms", "R@1", "model", table)],
        settings={"captions": cost.num_captions, "clips": cost.num_clips},
        notes=[
            "Scales of int8, layers that stay in float32 and the gate of each export come from the val split.",
            "Same first clip: share of captions whose first clip is the trained model's, or 0.001 from it.",
            "ms: of paired rounds, one query with its tokenizing, one clip without decoding.",
        ],
    )


def opened(
    run: Path, dataset: str, data_root: Path | None, folder: Path
) -> Iterator[tuple[str, evaluate.Encoders | None, Row]]:
    """The run itself and its exports, each with its size, or why it is not there."""
    request = tuned_request(run)
    yield TORCH, evaluate.torch_encoders(request.model, torch.device("cpu")), {}
    calibration = read_calibration(dataset, data_root, request.frames, request.tokenizer)
    for name, target in TARGETS.items():
        say(f"{name}: exporting")
        out = folder / name.replace(" ", "-")
        try:
            write_bundle(request, out, target, None if target == FLOAT32_ONNX else calibration)
        except (DglError, ModuleNotFoundError) as error:
            yield name, None, {"model": f"{name}: {' '.join(str(error).split())}"}
            continue
        size = sum(path.stat().st_size for path in out.iterdir())
        yield name, evaluate.bundle_encoders(out, engine=target.form), {"MB": size / 1e6}


def timed(ready: Mapping[str, evaluate.Encoders], rounds: int) -> dict[str, dict[str, Spread]]:
    """Milliseconds of a query and of a clip, all models side by side."""
    spec = next(iter(ready.values())).frames
    frames = np.zeros((1, spec.num_frames, 3, spec.size, spec.size), np.uint8)
    found = {}
    for task, method, given in (
        ("query", "embed_captions", [QUERY]),
        ("clip", "embed_clips", frames),
    ):
        calls = {name: partial(getattr(each, method), given) for name, each in ready.items()}
        paired = time_paired(calls, rounds=rounds, label=task)
        found[task] = {name: paired.spread_ms(name) for name in ready}
    return found


if __name__ == "__main__":
    main()
