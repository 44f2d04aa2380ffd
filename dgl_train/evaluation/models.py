"""The models that dgl-eval is given: runs, checkpoints, bundles, and folders of runs by seed."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from dgl_runtime.errors import ConfigError
from dgl_train.evaluation.evaluate import Encoders, bundle_encoders, torch_encoders
from dgl_train.model.checkpoint import load_checkpoint, untuned_model
from dgl_train.model.methods import TunedModel
from dgl_train.recipes.recipe import AS_PATHS

CHOSEN_ON_TEST = "EPOCH CHOSEN ON THE TEST SET: compare only with results chosen that way"
_SEED_FOLDER = re.compile(r"seed(\d+)")


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to be measured.

    Attributes:
        path: Where it came from.
        selection: How its epoch was chosen, one line.
        encoders: What evaluation needs of it.
        tuned: The torch model with its settings; None for a bundle.
    """

    path: Path
    selection: str
    encoders: Encoders
    tuned: TunedModel | None


def expand_runs(paths: Iterable[Path]) -> list[Path]:
    """Each path, or the runs ``seed0``, ``seed1``, ... inside it, in the order of their numbers."""
    return [run for path in paths for run in _runs_inside(path) or [path]]


def _runs_inside(path: Path) -> list[Path]:
    if not path.is_dir() or is_bundle(path) or (path / "best.safetensors").exists():
        return []
    found = [(match, run) for run in path.iterdir() if (match := _SEED_FOLDER.fullmatch(run.name))]
    return [run for _, run in sorted((int(match[1]), run) for match, run in found)]


def is_bundle(path: Path) -> bool:
    """Whether this is a folder that dgl-export wrote."""
    return (path / "manifest.json").is_file()


def recipe_file(model: Path) -> Path | None:
    """The recipe of a run, given as its folder or as a checkpoint in it; None: there is none."""
    file = (model if model.is_dir() else model.parent) / "recipe.toml"
    return file if file.is_file() else None


def selection_line(model: Path, *, zero_shot: bool = False) -> str:
    """How the epoch of a model was chosen, in one line.

    Raises:
        ConfigError: The recipe beside the checkpoint cannot be read.
    """
    if zero_shot:
        return "untuned backbone: no epoch was chosen"
    if is_bundle(model):
        return "selection not recorded in the bundle"
    if model.name == "last.safetensors":
        return "last epoch, not chosen"
    file = recipe_file(model)
    if file is None:
        return "selection not recorded: no recipe.toml beside the checkpoint"
    try:
        recipe = tomllib.loads(file.read_text("utf-8", errors=AS_PATHS))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"recipe {file} cannot be read: {error}. Give a run folder as dgl-train left it."
        ) from error
    on_test = recipe.get("select_on_test", False)
    return CHOSEN_ON_TEST if on_test else "epoch chosen on validation"


def open_model(path: Path, *, zero_shot: bool, device: torch.device) -> OpenedModel:
    """Open a run, a checkpoint or a bundle.

    Args:
        path: Its folder or file.
        zero_shot: Take the untuned backbone of the run, clips as the mean of their frames.
        device: Where to compute.

    Raises:
        ConfigError: Not a model, or a bundle where a backbone is needed.
        BundleError: A bundle that cannot be read.
        EngineError: The device is missing.
    """
    selection = selection_line(path, zero_shot=zero_shot)
    if is_bundle(path):
        if zero_shot:
            raise ConfigError(
                f"{path} is an exported bundle, which has no backbone of its own. "
                "Give --zero-shot with the run it was exported from."
            )
        return OpenedModel(path, selection, bundle_encoders(path, device=device.type), None)
    tuned = load_checkpoint(path)
    model = (untuned_model(tuned) if zero_shot else tuned.model).to(device)
    return OpenedModel(path, selection, torch_encoders(model, device), tuned)
