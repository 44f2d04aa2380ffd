"""What a training run leaves on disk, and what another process needs to go on with it.

``recipe.toml`` holds every setting, ``environment.json`` what it ran on,
``dropped.csv`` which videos could not be read, ``metrics.jsonl`` one line an
epoch, ``events/`` the same and more for TensorBoard, ``best.safetensors`` and ``last.safetensors`` what
was trained, ``resume.pt`` the state. Each file is replaced in one step.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgl_runtime.errors import ConfigError, reason_of
from dgl_train.data.datasets import CaptionedClip
from dgl_train.model.checkpoint import replacing
from dgl_train.recipes.recipe import Recipe, read_recipe, write_recipe

FREE_ON_RESUME = frozenset({"num_workers", "save_every_steps"})  # they change no result


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps taken.
        loss_sum: Sum of the losses of this epoch.
        best_epoch: The epoch with the best recall so far, from 1; 0: none yet.
        best_recall: Its validation R@1, percent.
        awaits_validation: The epoch that this step ended has not been validated.
    """

    step: int = 0
    loss_sum: float = 0.0
    best_epoch: int = 0
    best_recall: float = -1.0
    awaits_validation: bool = False


@dataclass(frozen=True)
class SavedRun:
    """What ``resume.pt`` holds.

    No state of a random generator: every random number is a function of seed, epoch and clip.
    """

    clips_sha256: str
    progress: Progress
    trained: dict[str, Tensor]
    step: dict[str, Any]


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.dropped = path / "dropped.csv"
        self.events = path / "events"
        self._recipe = path / "recipe.toml"
        self._state = path / "resume.pt"
        self._metrics = path / "metrics.jsonl"

    def begin(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Start a new run here.

        Raises:
            ConfigError: If there is a run already.
        """
        if self._state.exists():
            raise ConfigError(
                f"{self.path} holds a run at step {self._load().progress.step}. "
                "Resume it with --resume, or give another folder with --out."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics.unlink(missing_ok=True)
        shutil.rmtree(self.events, ignore_errors=True)
        write_recipe(self._recipe, recipe)
        text = json.dumps(environment, indent=2)
        (self.path / "environment.json").write_text(text + "\n", "utf-8")

    def resume(self, recipe: Recipe, clips_sha256: str) -> SavedRun:
        """Read the run that is here, to go on with it.

        Raises:
            ConfigError: If there is none, or it has another recipe or other clips.
        """
        if not self._state.exists():
            raise ConfigError(f"{self.path} holds no run to resume. Leave out --resume.")
        before, now = asdict(read_recipe(self._recipe)), asdict(recipe)
        differing = [key for key in now if now[key] != before[key] and key not in FREE_ON_RESUME]
        if differing:
            found = ", ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in differing)
            raise ConfigError(
                f"{self.path} holds a run with another recipe: {found}. "
                "Give the same settings, or another folder with --out."
            )
        saved = self._load()
        if saved.clips_sha256 != clips_sha256:
            raise ConfigError(
                f"{self.path} holds a run on other clips. Give the same data set, or another "
                "folder with --out."
            )
        return saved

    def _load(self) -> SavedRun:
        try:
            saved = torch.load(self._state, map_location="cpu", weights_only=True)
            return SavedRun(**{**saved, "progress": Progress(**saved["progress"])})
        except Exception as error:  # torch.load raises many kinds
            raise ConfigError(
                f"{self._state} cannot be read: {reason_of(error)}. Give another folder with --out."
            ) from error

    def save(self, saved: SavedRun) -> None:
        """Write all that is needed to go on."""
        with replacing(self._state) as temporary:
            torch.save({**vars(saved), "progress": asdict(saved.progress)}, temporary)

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Append an epoch's line, in place of what a killed process wrote for it and after it."""
        lines = self._metrics.read_text("utf-8").splitlines() if self._metrics.exists() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < metrics["epoch"]]
        temporary = self._metrics.with_suffix(".writing")
        temporary.write_text("\n".join([*kept, json.dumps(metrics)]) + "\n", "utf-8")
        temporary.replace(self._metrics)


def digest_clips(*parts: Sequence[CaptionedClip]) -> str:
    """Names the clips of a run, wherever its videos lie."""
    sha = hashlib.sha256()
    for part in parts:
        for clip in part:
            what = (clip.video.name, clip.start_s, clip.end_s, clip.caption)
            sha.update(json.dumps(what).encode())
        sha.update(b";")
    return sha.hexdigest()
