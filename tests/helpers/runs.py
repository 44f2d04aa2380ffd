"""Run folders as dgl-train leaves them, without training."""

import csv

import torch

from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import ModelSettings, build_model, trained_parameters
from dgl_train.model.prompts import PromptCounts
from dgl_train.recipes.recipe import read_recipe, write_recipe


def tuned_model(backbone, seed=0):
    """DGL-linear with prompts as strong as trained ones."""
    torch.manual_seed(seed)
    settings = ModelSettings("dgl-linear", PromptCounts(2, 2, 4), num_frames=2, max_tokens=24)
    tuned = build_model(backbone, settings)
    with torch.no_grad():
        for tensor in trained_parameters(tuned.model).values():
            tensor.add_(0.3 * torch.randn_like(tensor))
    return tuned


def write_run(folder, backbone_folder, *, seed=0, select_on_test=False):
    """A run of dgl-linear with random prompts; returns its folder."""
    folder.mkdir(parents=True)
    tuned = tuned_model(load_backbone(BackboneSource(str(backbone_folder))), seed)
    for name in ("best", "last"):
        save_checkpoint(folder / f"{name}.safetensors", tuned)
    settings = [f"backbone={backbone_folder}", f"select_on_test={select_on_test}"]
    write_recipe(folder / "recipe.toml", read_recipe("default", settings))
    return folder


def write_csv(path, clips):
    """The clips as a data set; returns the file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "split"])
        writer.writerows((clip.video, clip.caption, clip.split) for clip in clips)
    return path
