"""DGL on four kinds of backbones, tiny and pretrained on stills of shapes: what each gains, over seeds.

    python benchmarks/studies/kinds.py FOLDER --seeds 3

The kinds have the parts by which published models differ (CLIP, PE-Core, SigLIP 2, BLIP), not their sizes
or weights. Finished runs are kept, so an interrupted table is gone on with.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dgl_bench.command import benchmark, say
from dgl_bench.report import Report, Row, Table, mean_and_spread
from dgl_runtime.bundle.input_spec import InputSpec, clip_frames, clip_texts
from dgl_runtime.errors import EngineError
from dgl_train.commands.evaluate import evaluate
from dgl_train.commands.train import shapes, train
from dgl_train.model.backbones.backbone import Backbone, BackboneSource, Facts
from dgl_train.model.backbones.block import BlockShape, Rotation
from dgl_train.model.backbones.clip import OPENAI_MEAN, OPENAI_STD
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.pooling import FirstToken, MapPooling, MapShape
from dgl_train.model.backbones.registry import FAMILIES, Family
from dgl_train.model.backbones.towers import TextShape, TextTower, VisionShape, VisionTower
from dgl_train.shapes.backbone import pretrain, stills_recall
from dgl_train.shapes.clips import SIZE, build_once, read_made_from

FRAMES, TOKENS, EMBED = 4, 24, 128
VISION = BlockShape(192, 4, 768)
TEXT = BlockShape(128, 4, 512)
LAYERS, PATCH = 4, 16
SIDE = SIZE // PATCH
VARIANTS = {
    "DGL-linear": ("method=dgl-linear",),
    "DGL-transformer": ("method=dgl-transformer",),
}
READ_OTHERWISE = {
    "pooled": {"DGL-linear, globals alone": ("method=dgl-linear", "visual_output=global-prompt")},
    "class token": {
        "DGL-linear, mean of frames": ("method=dgl-linear", "visual_output=mean-frames")
    },
}
"""What a kind does not read by itself: the global prompts, or the tokens of frames."""


def clip_like() -> tuple[VisionTower, TextTower]:
    """A class token, causal texts read at their end."""
    block, of_text = (replace(one, activation="quick_gelu") for one in (VISION, TEXT))
    vision = VisionTower(VisionShape(block, LAYERS, PATCH, SIDE, EMBED))
    return vision, TextTower(TextShape(of_text, LAYERS, 49408, TOKENS, EMBED), clip_texts(TOKENS))


def pe_like() -> tuple[VisionTower, TextTower]:
    """A class token, rotated patches, map pooling over all tokens; texts as CLIP's."""
    shape = VisionShape(VISION, LAYERS, PATCH, SIDE, EMBED, projection="linear")
    vision = VisionTower(shape, map_pooling("gelu"), rotation=rotation())
    return vision, TextTower(TextShape(TEXT, LAYERS, 49408, TOKENS, EMBED), clip_texts(TOKENS))


def siglip_like() -> tuple[VisionTower, TextTower]:
    """No class token, map pooling, no projection; texts that see all, padding too, read at their last place."""
    block = replace(VISION, activation="gelu_tanh", eps=1e-6)
    shape = VisionShape(
        block, LAYERS, PATCH, SIDE, VISION.width,
        patch_bias=True, has_class_token=False, has_ln_pre=False, projection="none",
    )  # fmt: skip
    of_text = TextShape(
        replace(TEXT, activation="gelu_tanh", eps=1e-6), LAYERS, 49408, TOKENS, VISION.width,
        is_causal=False, projection="linear",
    )  # fmt: skip
    texts = replace(clip_texts(TOKENS), pad_to=TOKENS, read="last")
    return VisionTower(shape, map_pooling("gelu_tanh")), TextTower(of_text, texts)


def blip_like() -> tuple[VisionTower, TextTower]:
    """A class token without a norm before the blocks; texts as BERT's, read at their first token."""
    shape = VisionShape(
        replace(VISION, eps=1e-6), LAYERS, PATCH, SIDE, EMBED,
        patch_bias=True, has_ln_pre=False, projection="linear",
    )  # fmt: skip
    of_text = TextShape(
        replace(TEXT, norms_last=True, eps=1e-12), LAYERS, 49408, TOKENS, EMBED,
        is_causal=False, masks_padding=True, norms_embedded=True, projection="linear",
    )  # fmt: skip
    return VisionTower(shape), TextTower(of_text, replace(clip_texts(TOKENS), read="first"))


KINDS: dict[str, Callable[[], tuple[VisionTower, TextTower]]] = {
    "CLIP": clip_like,
    "PE-Core": pe_like,
    "SigLIP 2": siglip_like,
    "BLIP": blip_like,
}


def map_pooling(activation: str) -> MapPooling:
    """PE-Core's and SigLIP's, small."""
    return MapPooling(MapShape(VISION.width, VISION.heads, VISION.hidden, activation, 1e-6))


def rotation() -> Rotation:
    """Half of a head's pairs turn by the row of a patch, half by its column; the class token does not."""
    pairs = VISION.width // VISION.heads // 2
    turns = 100.0 ** (-torch.arange(pairs // 2) / (pairs // 2))
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angles = torch.cat([one.flatten()[:, None] * turns for one in (rows, columns)], dim=1)
    angles = F.pad(torch.cat([angles, angles], dim=1), (0, 0, 1, 0))  # [1 + P, D/H]
    return Rotation(angles.cos(), angles.sin())


@torch.no_grad()
def start(tower: VisionTower | TextTower) -> None:
    """Starting values of what torch does not give any; places and words as large as dgl-shapes starts them."""
    width = tower.width
    nn.init.normal_(tower.positions, std=0.7 if isinstance(tower, VisionTower) else 0.05)
    if isinstance(tower, TextTower):
        nn.init.normal_(tower.token_embedding.weight, std=0.1)
    elif tower.class_embedding is not None:
        nn.init.normal_(tower.class_embedding, std=width**-0.5)
    if tower.projection is not None:
        nn.init.normal_(tower.projection, std=width**-0.5)
    if tower.projection_bias is not None:
        nn.init.zeros_(tower.projection_bias)
    if isinstance(tower, VisionTower) and isinstance(tower.pooling, MapPooling):
        nn.init.normal_(tower.pooling.latent, std=width**-0.5)


def backbone_of(kind: str, source: BackboneSource) -> Backbone:
    """A kind's backbone, untrained."""
    vision, text = KINDS[kind]()
    frames = clip_frames(FRAMES, SIZE, OPENAI_MEAN, OPENAI_STD)
    tokenizer = clip_tokenizer(TOKENS).fed_as(text.texts)
    embed_dim = vision.shape.embed_dim
    facts = Facts(source, InputSpec(frames, text.texts), tokenizer, embed_dim)
    return Backbone(vision, text, facts, logit_scale=math.log(1 / 0.07))


class Stills(nn.Module):
    """A backbone as what is pretrained on stills."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.logit_scale = backbone, backbone.logit_scale

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> [B, E]."""
        return F.normalize(self.backbone.vision(pixels), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], padded where the kind attends to padding -> [B, E]."""
        more = (self.backbone.facts.inputs.texts.pad_to or tokens.shape[1]) - tokens.shape[1]
        return F.normalize(self.backbone.text(F.pad(tokens, (0, more))), dim=-1)


def make_kind(folder: Path, kind: str, seed: int, steps: int) -> Path:
    """Pretrain a kind on stills, unless the folder holds it already."""

    def write(staging: Path) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = backbone_of(kind, BackboneSource(kind))
            start(backbone.vision)  # type: ignore[arg-type]
            start(backbone.text)  # type: ignore[arg-type]
        backbone.requires_grad_(True)
        stills = Stills(backbone)
        loss = pretrain(stills, seed=seed, steps=steps)
        save_file(backbone.state_dict(), staging / "kind.safetensors")
        return {"loss": loss, **stills_recall(stills, seed)}

    build_once(folder, {"kind": kind, "seed": seed, "steps": steps}, write)
    say(f"{folder}: stills {read_made_from(folder)['report']}")
    return folder


def load_kind(source: BackboneSource) -> Backbone:
    """What ``make_kind`` wrote."""
    folder = Path(source.name)
    backbone = backbone_of(read_made_from(folder)["config"]["kind"], source)
    backbone.load_state_dict(load_file(folder / "kind.safetensors"))
    return backbone


FAMILIES["kinds"] = Family(
    lambda source: (Path(source.name) / "kind.safetensors").is_file(), load_kind
)


@benchmark
def main(
    folder: Path, seeds: int = 3, steps: int = 400, epochs: int = 16, kinds: str = ",".join(KINDS)
) -> Report:
    """Four kinds of backbones on shapes made in FOLDER: untuned, DGL-linear, DGL-transformer.

    What FOLDER holds from an earlier call is used again. About two minutes a run.

    Example: python benchmarks/studies/kinds.py kinds --seeds 3
    """
    found: dict[tuple[str, str], list[Any]] = {}
    for seed in range(seeds):
        for kind in kinds.split(","):
            for variant, report in outcomes(folder, kind, seed, steps, epochs):
                found.setdefault((kind, variant), []).append(report)
    rows = [row_of(kind, variant, reports) for (kind, variant), reports in found.items()]
    return Report(
        name="kinds",
        is_timed=False,
        title="DGL on four kinds of backbones",
        tables=[Table("shapes, test split", rows)],
        notes=[
            "Mean and sample standard deviation over seeds; each seed has its own clips, backbone and order of "
            "training. The epoch is chosen on val, test is looked at once. One recipe for all.",
            "Stills R@1: of the backbone, on new stills, 320 kinds of them.",
            "A clip is read from a global prompt (CLIP, BLIP), or from the pooled global prompts and tokens of "
            "all frames (PE-Core, SigLIP 2). Globals alone: pooled without tokens of frames. Mean of frames: no"
            " global prompt is read.",
        ],
    )


def outcomes(folder: Path, kind: str, seed: int, steps: int, epochs: int) -> list[tuple[str, Any]]:
    """What dgl-eval says of each variant of a kind on one seed's clips."""
    clips = folder / f"shapes{seed}"
    if not clips.is_dir():
        called(shapes, clips, "--seed", seed, "--clips-only")
    name = "".join(sign for sign in kind if sign.isalnum())
    backbone = make_kind(folder / f"{name}{seed}", kind, seed, steps)
    stills = read_made_from(backbone)["report"]["R@1"]
    reads = "class token" if isinstance(KINDS[kind]()[0].pooling, FirstToken) else "pooled"
    data = ("--dataset", "shapes", "--data-root", clips)
    told = []
    for variant, settings in {**VARIANTS, **READ_OTHERWISE[reads]}.items():
        run = folder / f"{name}{seed}-{''.join(sign for sign in variant if sign.isalnum())}"
        shared = [
            f"backbone={backbone.resolve()}",
            f"max_tokens={TOKENS}",
            f"epochs={epochs}",
            "frame_cache_gb=1",
        ]
        if not (done := run.with_suffix(".json")).exists():
            options = [part for one in (*shared, *settings) for part in ("--set", one)]
            options += ["--set", f"training_seed={seed}"]
            options += ["--resume"] if (run / "resume.pt").exists() else []
            called(train, *data, "--out", run, *options)
            done.write_text(called(evaluate, run, *data, "--json"), "utf-8")
        told.append((variant, json.loads(done.read_text("utf-8"))))
    untuned = folder / f"{name}{seed}-untuned.json"
    if not untuned.exists():  # any run names the backbone
        untuned.write_text(called(evaluate, run, *data, "--json", "--zero-shot"), "utf-8")
    return [("untuned", {**json.loads(untuned.read_text("utf-8")), "stills": stills}), *told]


def called(command: click.Command, *arguments: object) -> str:
    """What one of our commands prints, here: another process would not know the kinds."""
    say(f"{command.name} {' '.join(map(str, arguments))}")
    result = CliRunner().invoke(command, [str(one) for one in arguments])
    if result.exit_code:
        raise EngineError(f"{command.name} failed: {result.stderr or result.exception}")
    return result.stdout


def row_of(kind: str, variant: str, reports: list[Any]) -> Row:
    """Mean and spread over seeds."""
    ways = {"T2V": "text_to_video", "V2T": "video_to_text"}
    row: Row = {"kind": kind, "variant": variant}
    for name, k in (("T2V", 1), ("T2V", 5), ("T2V", 10), ("V2T", 1)):
        row[f"{name} R@{k}"] = mean_and_spread([one[ways[name]][f"r{k}"] for one in reports])
    row["direction"] = mean_and_spread([one["direction_score"] for one in reports])
    stills = [one["stills"] for one in reports if "stills" in one]
    row["stills R@1"] = mean_and_spread(stills) if stills else None
    return {**row, "reports": reports}


if __name__ == "__main__":
    main()
