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
import torch

from dgl_bench.command import benchmark, say
from dgl_bench.random_backbone import count_parameters, write_random
from dgl_bench.report import Report, Row, Table
from dgl_export.bundle_writer import write_bundle
from dgl_export.formats import FLOAT32_ONNX
from dgl_export.request import untuned_request
from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.errors import DglError, reason_of
from dgl_train.model.backbones.open_clip_encoders import text_of
from dgl_train.model.backbones.open_clip_towers import NoTowerError, text_tower, vision_tower
from dgl_train.model.backbones.timm_towers import timm_tower
from dgl_train.model.backbones.towers import TextTower, VisionTower
from dgl_train.model.dual_encoder import OnBackbone

FRAMES = 2
"""Of a clip: an untuned model is the mean over any number."""
OF_TRANSFORMERS = {
    "coca_roberta-ViT-B-32": 420.37,
    "mt5-base-ViT-B-32": 365.71,
    "mt5-xl-ViT-H-14": 2306.75,
    "nllb-clip-base": 501.89,
    "nllb-clip-base-siglip": 507.2,
    "nllb-clip-large": 1399.22,
    "nllb-clip-large-siglip": 1195.4,
    "roberta-ViT-B-32": 212.72,
    "xlm-roberta-base-ViT-B-32": 366.12,
    "xlm-roberta-large-ViT-H-14": 1193.01,
}
"""Millions of parameters of those that cannot be counted here: open_clip's docs/model_profile.csv; of NLLB with
SigLIP, the sum of its parts."""
PASSED_OVER = "larger than what was tried; prompts by its form alone"


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
            known[name] = outcome(name, most)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
    rows = [known[name] for name in sorted(known)]
    tried = [row for row in rows if row["untuned"]]
    share = sum(row["untuned"] == "yes" for row in tried) / max(1, len(tried))
    return Report(
        name="backbones",
        is_timed=False,
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
    row: Row = {"model": name, "M parameters": OF_TRANSFORMERS.get(name), "untuned": "no"}
    row |= {"prompts": "no", "off by": None, "why not": ""}
    with TemporaryDirectory() as folder:
        try:
            row["M parameters"] = size = row["M parameters"] or count_parameters(name) / 1e6
            if size > most:
                return {
                    **row,
                    "untuned": "",
                    "prompts": prompts_by_form(name),
                    "why not": PASSED_OVER,
                }
            request = untuned_request(str(write_random(name, Path(folder) / "backbone")), "")
            request = replace(request, num_frames=FRAMES)
            assert isinstance(request.model, OnBackbone)
            both = request.model.backbone
            taken = isinstance(both.vision, VisionTower), isinstance(both.text, TextTower)
            parity = write_bundle(request, Path(folder) / "bundle", FLOAT32_ONNX).parity
        except (DglError, RuntimeError, ImportError) as error:
            return {**row, "why not": reason_of(error).replace(folder, "FOLDER")[:200]}
    return {**row, "untuned": "yes", "prompts": told(*taken), "off by": parity.max_abs}


def told(vision: bool, text: bool) -> str:
    """Where prompts are taken, by whether an encoder's blocks can be attended in."""
    return "no" if not text else "yes" if vision else "captions' alone"


def prompts_by_form(name: str) -> str:
    """What takes prompts in a model without numbers."""
    if name in OF_TRANSFORMERS:
        return told(vision=False, text=False)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    as_tower = {"VisionTransformer": vision_tower, "TimmModel": timm_tower}
    text, context = (
        text_of(model),
        open_clip.get_model_config(name)["text_cfg"].get("context_length", 77),
    )
    taken = []
    for make in (
        lambda: as_tower[type(model.visual).__name__](model.visual),
        lambda: text_tower(text, clip_texts(context)),
    ):
        try:
            make()
            taken.append(True)
        except (KeyError, NoTowerError):
            taken.append(False)
    return told(*taken)


if __name__ == "__main__":
    main()
