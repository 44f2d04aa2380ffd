"""Every model of open_clip, with random numbers: is it exported, or why not.

    python benchmarks/studies/backbones.py results.jsonl

A model takes minutes, all of them hours: what the file holds already is not done again.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import open_clip

from dgl_bench.command import benchmark, say
from dgl_bench.random_backbone import count_parameters, write_random
from dgl_bench.report import Report, Row, Table
from dgl_export.bundle_writer import write_bundle
from dgl_export.formats import FLOAT32_ONNX
from dgl_export.request import untuned_request
from dgl_runtime.errors import DglError, reason_of
from dgl_train.model.backbones.towers import TextTower, VisionTower
from dgl_train.model.dual_encoder import OnBackbone

FRAMES = 2
"""Of a clip: an untuned model is the mean over any number."""


@benchmark
def main(
    results: Path,
    names: Annotated[str, "Of open_clip's models, with commas; all of them without."] = "",
    most: Annotated[int, "Millions of parameters; larger models are passed over."] = 500,
) -> Report:
    """Export every open_clip model untuned, and say what comes of it.

    Example: python benchmarks/studies/backbones.py results.jsonl --most 500
    """
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    known = {row["model"]: row for row in map(json.loads, lines)}
    for name in names.split(",") if names else open_clip.list_models():
        if name not in known:
            say(name)
            known[name] = outcome(name, most * 1_000_000)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
    rows = [known[name] for name in sorted(known)]
    tried = [row for row in rows if not row["why not"].startswith("passed over")]
    share = sum(row["untuned"] == "yes" for row in tried) / max(1, len(tried))
    return Report(
        name="backbones",
        title="Models of open_clip",
        tables=[Table("Exported untuned, and takes prompts", rows)],
        notes=[
            f"Random numbers. {share:.1%} of {len(tried)} models of up to {most} M parameters are exported.",
            f"Off by: the largest difference between the exported graphs and the model, of any number of a "
            f"unit embedding; clips of {FRAMES} frames.",
        ],
    )


def outcome(name: str, most: int) -> Row:
    """What comes of one model."""
    row: Row = {"model": name, "M parameters": None, "untuned": "no", "prompts": "no"}
    row |= {"off by": None, "why not": ""}
    with TemporaryDirectory() as folder:
        try:
            if (count := count_parameters(name)) > most:
                raise DglError(f"passed over: {count / 1e6:.0f} M parameters")
            row["M parameters"] = count / 1e6
            request = untuned_request(str(write_random(name, Path(folder) / "backbone")), "")
            request = replace(request, num_frames=FRAMES)
            assert isinstance(request.model, OnBackbone)
            both = request.model.backbone
            is_prompted = isinstance(both.vision, VisionTower) and isinstance(both.text, TextTower)
            parity = write_bundle(request, Path(folder) / "bundle", FLOAT32_ONNX).parity
        except (DglError, RuntimeError, ImportError) as error:
            return {**row, "why not": reason_of(error).replace(folder, "FOLDER")[:200]}
    told = {"untuned": "yes", "prompts": "yes" if is_prompted else "no", "off by": parity.max_abs}
    return {**row, **told}


if __name__ == "__main__":
    main()
