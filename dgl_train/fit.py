"""Training: prompts learn on batches of captioned clips, the backbone stays as it is."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from dgl_runtime.errors import ConfigError
from dgl_train.backbone import Backbone
from dgl_train.checkpoint import ModelSettings, TunedModel, make_prompts, save_checkpoint
from dgl_train.config import Recipe
from dgl_train.data import Batch, FrameFormat, read_batches, steps_per_epoch, training_batches
from dgl_train.datasets import CaptionedClip
from dgl_train.evaluate import Report, evaluate, torch_encoders
from dgl_train.model import DglModel
from dgl_train.optimizer import make_optimizer, rate_factor
from dgl_train.prompts import PromptCounts
from dgl_train.run_folder import Progress, RunFolder, SavedRun, digest_clips
from dgl_train.stopping import StopRequest
from dgl_train.vocabulary import clip_tokenizer


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Optimizer steps taken in all.
        total_steps: Steps of the whole run; more than ``step`` if it was asked to stop.
        best_epoch: The epoch ``best.safetensors`` is from; 0: none has ended.
        best_recall: Its R@1 on the validation clips, text to video, percent.
    """

    run: Path
    step: int
    total_steps: int
    best_epoch: int
    best_recall: float


def contrastive_loss(captions: Tensor, clips: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over a batch's similarities; the diagonal is right.

    Args:
        captions: Unit-norm embeddings [B, E].
        clips: Unit-norm embeddings [B, E].
        logit_scale: Factor on the cosine, [].

    Returns:
        Mean of the losses over rows and over columns, [].
    """
    logits = logit_scale * captions @ clips.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def make_model(recipe: Recipe, backbone: Backbone) -> TunedModel:
    """An untrained model of a recipe; its prompts depend on the seed alone.

    Raises:
        ConfigError: If the backbone cannot take captions of that length.
    """
    if recipe.max_words > backbone.context_length:
        raise ConfigError(
            f"max_words is {recipe.max_words}, but backbone {backbone.source.name!r} reads "
            f"captions of {backbone.context_length} tokens at most. Lower max_words."
        )
    counts = PromptCounts(recipe.global_prompts, recipe.frame_prompts, recipe.caption_prompts)
    settings = ModelSettings(recipe.method, counts, recipe.num_frames, recipe.max_words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training_seed)
        return TunedModel(DglModel(backbone, make_prompts(backbone, settings)), settings)


def train_step(
    model: DglModel,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    frames: Tensor,
    *,
    max_grad_norm: float,
) -> float:
    """One step on a batch; nothing is changed where the loss is not finite.

    Args:
        model: Its prompts are trained.
        optimizer: With the learning rates of this step.
        tokens: Captions, [B, L].
        frames: Their clips, uint8 [B, F, 3, S, S].
        max_grad_norm: A longer gradient is shortened to this norm.

    Returns:
        The loss.
    """
    loss = contrastive_loss(
        model.encode_captions(tokens), model.encode_clips(frames), model.logit_scale
    )
    value = loss.item()
    if math.isfinite(value):
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.prompts.parameters(), max_grad_norm)
        optimizer.step()
    return value


def fit(
    recipe: Recipe,
    clips_train: Sequence[CaptionedClip],
    clips_val: Sequence[CaptionedClip],
    run_folder: Path,
    *,
    backbone: Backbone,
    device: torch.device,
    resume: bool = False,
    progress_bar: bool = True,
) -> FitResult:
    """Train, and select the epoch with the best validation recall.

    Args:
        recipe: Every setting.
        clips_train: What to learn from.
        clips_val: What to select by; no video of these is among the others.
        run_folder: What is learned goes here, see ``run_folder.py``.
        backbone: What the recipe's backbone names.
        device: Where to compute.
        resume: Go on with the run that is there.
        progress_bar: Whether to draw on stderr.

    Raises:
        ConfigError: If the folder, the clips or the recipe do not fit, or the loss is not finite.
        MediaError: If a video cannot be read.
    """
    if len(clips_train) < 2:
        raise ConfigError(
            f"there is {len(clips_train)} captioned clip to train on; give 2 or more."
        )
    folder, sha256 = RunFolder(run_folder), digest_clips(clips_train, clips_val)
    tuned = make_model(recipe, backbone)
    tuned.model.to(device)
    optimizer = make_optimizer(tuned.model.prompts, recipe)
    progress = Progress()
    if resume:
        saved = folder.resume(recipe, sha256)
        progress = saved.progress
        tuned.model.prompts.load_state_dict(saved.prompts)
        optimizer.load_state_dict(saved.optimizer)
    else:
        folder.begin(recipe)
    run = _Run(recipe, clips_train, clips_val, sha256, folder, tuned, optimizer, progress, device)
    run.go_on(progress_bar)
    return FitResult(
        run_folder, progress.step, run.total_steps, progress.best_epoch, progress.best_recall
    )


@dataclass
class _Run:
    """A run in memory; ``progress``, prompts and optimizer are what changes."""

    recipe: Recipe
    clips_train: Sequence[CaptionedClip]
    clips_val: Sequence[CaptionedClip]
    clips_sha256: str
    folder: RunFolder
    tuned: TunedModel
    optimizer: torch.optim.AdamW
    progress: Progress
    device: torch.device

    @property
    def epoch_steps(self) -> int:
        return steps_per_epoch(len(self.clips_train), self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epoch_steps * self.recipe.epochs

    def go_on(self, progress_bar: bool) -> None:
        """Train from the step the run is at to its end, or until asked to stop."""
        recipe, progress = self.recipe, self.progress
        size = min(recipe.batch_size, len(self.clips_train))
        bar = tqdm(
            total=self.total_steps * size,
            initial=progress.step * size,
            desc="training",
            unit=" clips",
            disable=not progress_bar,
        )
        started = time.monotonic()
        with bar, StopRequest() as stop:
            for batch in self._batches():
                loss = self._step(batch)
                bar.set_postfix(
                    loss=f"{loss:.3f}", best_val_r1=f"{max(0, progress.best_recall):.1f}"
                )
                bar.update(len(batch.numbers))
                is_epoch_end = progress.step % self.epoch_steps == 0
                if is_epoch_end:
                    self._end_epoch(time.monotonic() - started)
                if is_epoch_end or stop.is_set or progress.step % recipe.save_every_steps == 0:
                    self._save()
                if stop.is_set:
                    break

    def _batches(self) -> Iterator[Batch]:
        recipe = self.recipe
        size = self.tuned.model.backbone.frame_size
        return read_batches(
            self.clips_train,
            FrameFormat(recipe.num_frames, size, recipe.training_seed),
            training_batches(
                len(self.clips_train),
                batch_size=recipe.batch_size,
                epochs=recipe.epochs,
                seed=recipe.training_seed,
                first_step=self.progress.step,
            ),
            num_workers=recipe.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _step(self, batch: Batch) -> float:
        recipe, progress = self.recipe, self.progress
        factor = rate_factor(progress.step, self.total_steps, recipe.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        clips = [self.clips_train[number] for number in batch.numbers]
        tokens = clip_tokenizer()([clip.caption for clip in clips], recipe.max_words)
        loss = train_step(
            self.tuned.model,
            self.optimizer,
            torch.from_numpy(tokens).to(self.device),
            batch.frames.to(self.device, non_blocking=True),
            max_grad_norm=recipe.max_grad_norm,
        )
        if not math.isfinite(loss):
            videos = ", ".join(str(clip.video) for clip in clips)
            raise ConfigError(
                f"the loss is {loss} at step {progress.step + 1}. Lower learning_rate, or look at "
                f"the videos of this batch: {videos}."
            )
        progress.step += 1
        progress.loss_sum += loss
        return loss

    def _end_epoch(self, seconds: float) -> None:
        """Validate, and keep what was learned."""
        progress = self.progress
        epoch = progress.step // self.epoch_steps
        report = self._validate()
        recall = report.text_to_video.r1
        if recall > progress.best_recall:
            progress.best_recall, progress.best_epoch = recall, epoch
            save_checkpoint(self.folder.best, self.tuned)
        save_checkpoint(self.folder.last, self.tuned)
        self.folder.add_metrics(
            {
                "epoch": epoch,
                "step": progress.step,
                "loss": progress.loss_sum / self.epoch_steps,
                "seconds": round(seconds, 1),
                "validation": asdict(report),
            }
        )
        progress.loss_sum = 0.0

    def _validate(self) -> Report:
        recipe = self.recipe
        encoders = torch_encoders(
            self.tuned.model,
            num_frames=recipe.num_frames,
            max_words=recipe.max_words,
            device=self.device,
        )
        return evaluate(encoders, self.clips_val, num_workers=recipe.num_workers, progress=False)

    def _save(self) -> None:
        prompts, optimizer = self.tuned.model.prompts.state_dict(), self.optimizer.state_dict()
        self.folder.save(SavedRun(self.clips_sha256, self.progress, prompts, optimizer))
