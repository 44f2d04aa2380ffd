"""The studies, small: everything is measured and told."""

import csv

import numpy as np
import pytest
import torch

from dgl_export.fold import fold
from dgl_export.formats import Target
from dgl_runtime.bundle.manifest import MIN_COSINE
from dgl_runtime.errors import EngineError
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.block import BlockShape
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import ModelSettings, build_model
from dgl_train.model.prompts import PromptCounts
from dgl_train.recipes.recipe import read_recipe
from dgl_train.shapes.clips import make_shapes
from studies import experiments, folding, kinds, quality
from tests.helpers.odd_videos import write_video
from tests.helpers.tiny import write_tiny_backbone

SETTINGS = ("num_frames=2", "max_tokens=24", "epochs=1", "batch_size=16", "num_workers=0")


def test_each_target_is_evaluated_and_what_fails_is_told(tmp_path, measured, monkeypatch):
    backbone = load_backbone(BackboneSource(str(write_tiny_backbone(tmp_path / "run/backbone"))))
    settings = ModelSettings("dgl-linear", PromptCounts(), 3, 20)
    save_checkpoint(tmp_path / "run/best.safetensors", build_model(backbone, settings))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption", "split"])
        for number in range(12):
            video = write_video(tmp_path / f"video{number}.mp4", 12 + number)
            rows.writerow([video.name, f"clip {number}", "test" if number < 4 else "val"])
    targets = {"onnx fp32": Target("onnx", "fp32"), "onnx int8": Target("onnx", "int8")}
    monkeypatch.setattr(quality, "TARGETS", targets)
    monkeypatch.setitem(MIN_COSINE, "int8", 1.0)  # a gate that nothing passes
    options = ("--dataset", tmp_path / "clips.csv", "--rounds", 2)
    settings, ((trained, exact, int8),) = measured(quality.main, tmp_path / "run", *options)
    assert settings["captions"] == 4
    assert (trained["model"], exact["model"]) == (quality.TORCH, "onnx fp32")
    assert exact["R@1"] == trained["R@1"]
    assert exact["smallest cosine"] == pytest.approx(1, abs=1e-5)
    assert exact["query ms"]["median"] > 0
    assert int8["model"].startswith("onnx int8: quality gate")
    assert "R@1" not in int8


# ---- experiments ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Few shapes, and a tiny backbone without pretraining in place of the one that takes minutes."""
    shapes = tmp_path / "experiments/shapes0"
    make_shapes(shapes, num_train=16, num_val=16, num_test=16, progress=False)
    write_tiny_backbone(shapes / "backbone")
    return shapes.parent


def test_a_suite_is_trained_evaluated_and_kept(folder, measured, monkeypatch):
    monkeypatch.setitem(experiments.SUITES, "paper", {"DGL-linear": ["method=dgl-linear"]})
    chosen = [part for one in SETTINGS for part in ("--set", one)]
    options = ("paper", folder, "--seeds", 1, *chosen)
    _, (rows, flags) = measured(experiments.main, *options)
    untuned, tuned = rows
    assert (untuned["variant"], untuned["trained"]) == (experiments.ZERO_SHOT, 0)
    assert (tuned["variant"], flags[0]["dgl-train"]) == ("DGL-linear", "--set method=dgl-linear")
    assert tuned["trained"] > 0
    assert tuned["s a step"] > 0
    assert float(tuned["T2V R@10"]) > 0
    settings = (*SETTINGS, "training_seed=0", "method=dgl-linear")
    run = experiments.plan("DGL-linear", folder / "shapes0", settings, 1)
    monkeypatch.setattr(experiments, "command", lambda *_: pytest.fail("measured again"))
    assert experiments.finish(run)["report"] == tuned["outcomes"][0]["report"]
    other = experiments.plan("DGL-linear", folder / "shapes0", (*settings, "x=1"), 1)
    assert other.folder != run.folder


def test_a_command_that_fails_ends_all(folder):
    run = experiments.plan("DGL-linear", folder / "shapes0", ("x=1",), 1)
    with pytest.raises(EngineError, match="dgl-train failed with exit code 1"):
        experiments.finish(run)


@pytest.mark.parametrize("suite", experiments.SUITES)
def test_every_variant_is_a_recipe_of_its_own(suite):
    recipes = [read_recipe("shapes", overrides) for overrides in experiments.SUITES[suite].values()]
    assert len(set(map(repr, recipes))) == len(recipes)


def test_mean_and_spread():
    assert experiments.mean_and_spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert experiments.mean_and_spread([1.0]) == "1.0"


# ---- kinds ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_kind_is_pretrained_tuned_evaluated_and_kept(tmp_path, measured, monkeypatch):
    make_shapes(tmp_path / "kinds/shapes0", num_train=16, num_val=16, num_test=16, progress=False)
    monkeypatch.setattr(kinds, "VARIANTS", {"DGL-linear": ("method=dgl-linear", *SETTINGS)})
    options = ("--seeds", 1, "--steps", 2, "--epochs", 1)
    _, (rows,) = measured(kinds.main, tmp_path / "kinds", *options)
    read = ("mean of frames", "globals alone", "globals alone", "mean of frames")
    assert [one["variant"] for one in rows] == [
        variant for one in read for variant in ("untuned", "DGL-linear", f"DGL-linear, {one}")
    ]
    monkeypatch.setattr(kinds, "called", lambda *_: pytest.fail("done again"))
    monkeypatch.setattr(kinds, "pretrain", lambda *_, **__: pytest.fail("pretrained again"))
    assert measured(kinds.main, tmp_path / "kinds", *options)[1] == [rows]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_kind_learns_stills(kind, monkeypatch):
    """Chance is ln 8 = 2.08: something in each of its parts would not train."""
    from dgl_train.shapes import backbone as stills
    from dgl_train.shapes.clips import looks

    monkeypatch.setattr(kinds, "VISION", BlockShape(48, 3, 96))
    monkeypatch.setattr(kinds, "TEXT", BlockShape(32, 4, 64))
    monkeypatch.setattr(stills, "_BATCH", 8)
    some = [(look, "in the middle", "large") for look in looks("train")[:64:8]]
    fixed = stills._stills(some, np.random.default_rng(0))
    monkeypatch.setattr(stills, "_batches", lambda seed: iter([fixed] * 60))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = kinds.backbone_of(kind, BackboneSource(kind))
        for tower in (backbone.vision, backbone.text):
            kinds.start(tower)
    backbone.requires_grad_(True)
    loss = stills.pretrain(kinds.Stills(backbone), seed=0, steps=60, progress=False)
    assert loss < 1.0
    assert all(one.grad is not None for name, one in backbone.named_parameters())


# ---- folding ----------------------------------------------------------------------------------


def flop_of_blocks(encoder, inputs):
    """FLOP of the linear layers of a folded encoder's blocks, as it runs."""
    counted = []

    def count(layer, given, made):
        counted.append(2 * given[0].numel() // given[0].shape[-1] * layer.weight.numel())

    for block in encoder.blocks:
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(count)
    with torch.no_grad():
        encoder(inputs)
    return sum(counted)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_what_folding_saves_is_what_the_folded_graph_does_not_compute(kind):
    frames = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = kinds.backbone_of(kind, BackboneSource(kind))
        for tower in (backbone.vision, backbone.text):
            kinds.start(tower)
        settings = ModelSettings("dgl-linear", PromptCounts(), frames, kinds.TOKENS)
        model = build_model(backbone, settings).model.eval()
    folded = fold(model)
    heads = getattr(backbone.vision.pooling, "heads", 0)
    sizes = folding.Sizes(backbone.vision.shape, backbone.text.shape, frames, kinds.TOKENS, heads)
    length = kinds.TOKENS if model.inputs.texts.pad_to else folding.QUERY
    tokens = torch.full((1, length), 7, dtype=torch.int32)
    tokens[0, -1] = model.inputs.texts.end_id
    steps = folding.text_steps(sizes)
    left = steps[0].saved - sum(one.saved for one in steps[1:])
    assert flop_of_blocks(folded.text_encoder, tokens) == left
    held = [one.keys.numel() + one.values.numel() for one in folded.text_encoder.blocks]
    assert sum(held) == sum(one.constants for one in steps)
    clip = torch.zeros(1, frames, 3, 64, 64, dtype=torch.uint8)
    steps = {one.name: one for one in folding.clip_steps(sizes)}
    around = folding.around_blocks(sizes)
    saved = sum(steps[name].saved for name in folding.OF_BLOCKS)
    assert flop_of_blocks(folded.clip_encoder, clip) == steps["all of it"].saved - around - saved
    held = [one.keys.numel() + one.values.numel() for one in folded.clip_encoder.blocks]
    assert sum(held) == steps["2 frame prompts"].constants
