"""Training: batch after batch, epoch after epoch, validated, saved, and resumed exactly."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.errors import ConfigError, MediaError
from dgl_train.data.batches import (
    Batch,
    FrameFormat,
    read_batches,
    share,
    steps_per_epoch,
    training_batches,
)
from dgl_train.data.datasets import CaptionedClip
from dgl_train.data.frame_cache import FrameCache
from dgl_train.data.verify import write_dropped
from dgl_train.evaluation.evaluate import Report, evaluate, torch_encoders
from dgl_train.model.backbones.backbone import Backbone
from dgl_train.model.checkpoint import save_checkpoint
from dgl_train.model.methods import TunedModel, load_trained, trained_parameters
from dgl_train.recipes.recipe import Recipe
from dgl_train.training.events import Events
from dgl_train.training.processes import Processes
from dgl_train.training.provenance import describe_run
from dgl_train.training.run_folder import Progress, RunFolder, SavedRun, digest_clips
from dgl_train.training.step import StepResult, TrainingStep, make_batch, make_model
from dgl_train.training.stopping import StopRequest


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


def fit(
    recipe: Recipe,
    clips_train: Sequence[CaptionedClip],
    clips_val: Sequence[CaptionedClip],
    run_folder: Path,
    *,
    backbone: Backbone,
    device: torch.device,
    dropped: Mapping[Path, str] | None = None,
    resume: bool = False,
    progress_bar: bool = True,
) -> FitResult:
    """Train, and select the epoch with the best validation recall.

    Args:
        recipe: Every setting.
        clips_train: What to learn from.
        clips_val: What to select by; no video of these is among the others.
        run_folder: What is learned goes here, see ``run_folder.py``.
        backbone: What the recipe's backbone names; methods other than prompts change it.
        device: Where to compute; of several processes each takes its own GPU.
        dropped: Videos that were left out, with the reason: noted in the run folder.
        resume: Go on with the run that is there.
        progress_bar: Whether to draw on stderr.

    Raises:
        ConfigError: If the folder, the clips or the recipe do not fit, or the loss is not finite.
        MediaError: If a video cannot be read, or a process that reads is lost; what was learned is saved.
    """
    processes = Processes(device.type)
    _check_batch(batch_clips(recipe, clips_train), processes.count)
    folder, sha256 = RunFolder(run_folder), digest_clips(clips_train, clips_val)
    tuned = make_model(recipe, backbone)
    device = processes.device(device)
    tuned.model.to(device)
    total_steps = steps_per_epoch(len(clips_train), recipe.batch_size) * recipe.epochs
    step = TrainingStep(
        tuned.model, recipe, total_steps=total_steps, device=device, processes=processes
    )
    progress = Progress()
    if resume:
        saved = folder.resume(recipe, sha256)
        progress = saved.progress
        load_trained(tuned.model, saved.trained)
        step.load_state_dict(saved.step)
    elif processes.is_main:
        folder.begin(recipe, describe_run(device, processes=processes.count))
        write_dropped(folder.dropped, dropped or {})
    processes.wait()
    run = _Run(clips_train, clips_val, sha256, folder, tuned, step, progress)
    run.go_on(progress_bar and processes.is_main)
    return FitResult(
        run_folder, progress.step, total_steps, progress.best_epoch, progress.best_recall
    )


def batch_clips(recipe: Recipe, clips_train: Sequence[CaptionedClip]) -> int:
    """Clips of a batch, over all processes."""
    return min(recipe.batch_size, len(clips_train))


def _check_batch(size: int, processes: int) -> None:
    if size < 2:
        raise ConfigError(f"there is {size} captioned clip to train on; give 2 or more.")
    if size % processes:
        raise ConfigError(
            f"a batch of {size} clips cannot be shared evenly by {processes} processes. "
            f"Set batch_size to a multiple of {processes}."
        )


@dataclass
class _Run:
    """A run in memory; ``progress``, what is trained and the state of ``step`` change."""

    clips_train: Sequence[CaptionedClip]
    clips_val: Sequence[CaptionedClip]
    clips_sha256: str
    folder: RunFolder
    tuned: TunedModel
    step: TrainingStep
    progress: Progress
    epoch_waited_s: float = 0.0
    epoch_clips: int = 0  # trained on by all processes since this one began the epoch
    epoch_started: float = 0.0

    @property
    def recipe(self) -> Recipe:
        return self.step.recipe

    @property
    def processes(self) -> Processes:
        return self.step.processes

    @property
    def epoch_steps(self) -> int:
        return self.step.total_steps // self.recipe.epochs

    @property
    def batch_size(self) -> int:
        return batch_clips(self.recipe, self.clips_train)

    def go_on(self, progress_bar: bool) -> None:
        """Train from the step the run is at to its end, or until asked to stop.

        Raises:
            MediaError: If a video cannot be read; what was learned is saved first.
        """
        try:
            self._train(progress_bar)
        except MediaError as error:
            kept = "What was saved last stays"
            if self.processes.is_main:  # the others may be at work on the next step: nobody waits
                self._write_state()
                at = f"{self.progress.step} of {self.step.total_steps}"
                kept = f"What was learned is saved, after step {at}"
            raise MediaError(
                f"{error} {kept}: resume with the same command and --resume."
            ) from error

    def _train(self, progress_bar: bool) -> None:
        progress = self.progress
        bar = tqdm(
            total=self.step.total_steps * self.batch_size,
            initial=progress.step * self.batch_size,
            desc="training",
            unit=" clips",
            disable=not progress_bar,
        )
        with ExitStack() as stack:
            stack.enter_context(bar)
            stop = stack.enter_context(StopRequest())
            events = self._events(stack)
            self._start_epoch()
            if progress.awaits_validation:
                self._end_epoch(events)
                self._save()
            for batch in self._timed(self._batches()):
                result = self._train_on(batch)
                best = f"{max(0, progress.best_recall):.1f}"
                bar.set_postfix(loss=f"{result.loss:.3f}", best_val_r1=best)
                bar.update(self.batch_size)
                if events:
                    events.add(progress.step, {f"train/{k}": v for k, v in vars(result).items()})
                is_stopped = self.processes.any(stop.is_set)
                is_epoch_end = progress.awaits_validation
                if is_epoch_end:
                    self._end_epoch(events)
                if is_epoch_end or is_stopped or progress.step % self.recipe.save_every_steps == 0:
                    self._save()
                if is_stopped:
                    break

    def _events(self, stack: ExitStack) -> Events | None:
        if not self.processes.is_main:
            return None
        return stack.enter_context(Events(self.folder.events, first_step=self.progress.step + 1))

    def _batches(self) -> Iterator[Batch]:
        recipe, processes = self.recipe, self.processes
        whole = training_batches(
            len(self.clips_train),
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            seed=recipe.training_seed,
            first_step=self.progress.step,
        )
        return read_batches(
            self.clips_train,
            FrameFormat(self.tuned.model.inputs.frames, recipe.training_seed, self._frame_cache()),
            share(whole, processes.rank, processes.count),
            num_workers=recipe.num_workers,
            pin_memory=self.step.device.type == "cuda",
        )

    def _frame_cache(self) -> FrameCache | None:
        limit_gb = self.recipe.frame_cache_gb
        return FrameCache(cache_folder() / "frames", limit_gb) if limit_gb else None

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches, noting how long they were waited for."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.epoch_waited_s += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def _train_on(self, batch: Batch) -> StepResult:
        progress = self.progress
        clips = [self.clips_train[number] for number in batch.numbers]
        result = self.step.take(progress.step, make_batch(clips, batch.frames, self.step))
        if not self.step.is_sound(result):
            videos = ", ".join(str(clip.video) for clip in clips)
            raise ConfigError(
                f"the loss is {result.loss} and its gradient's norm {result.grad_norm} at step "
                f"{progress.step + 1}. Lower learning_rate, or look at the videos of this batch: "
                f"{videos}."
            )
        progress.step += 1
        progress.awaits_validation = progress.step % self.epoch_steps == 0
        self.epoch_clips += self.batch_size
        progress.loss_sum += result.loss
        return result

    def _start_epoch(self) -> None:
        self.epoch_started, self.epoch_waited_s, self.epoch_clips = time.monotonic(), 0.0, 0

    def _end_epoch(self, events: Events | None) -> None:
        """Validate, and keep what was learned."""
        progress = self.progress
        training_s = time.monotonic() - self.epoch_started
        clips = self.epoch_clips
        report = self._validate()
        recall = report.text_to_video.r1
        epoch = progress.step // self.epoch_steps
        is_best = recall > progress.best_recall
        if is_best:
            progress.best_recall, progress.best_epoch = recall, epoch
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": progress.step,
            "loss": progress.loss_sum / self.epoch_steps,
            "training_s": round(training_s, 2),
            "waited_for_clips_s": round(self.epoch_waited_s, 2),
            "clips_per_s": round(clips / training_s, 1),
            "clips_per_s_without_waiting": round(clips / (training_s - self.epoch_waited_s), 1),
            "validation": asdict(report),
        }
        progress.loss_sum, progress.awaits_validation = 0.0, False
        if self.processes.is_main:
            if is_best:
                save_checkpoint(self.folder.best, self.tuned)
            save_checkpoint(self.folder.last, self.tuned)
            self.folder.add_metrics(line)
        if events:
            ways = {"t2v": report.text_to_video, "v2t": report.video_to_text}
            values = {f"val/{way}_r1": metrics.r1 for way, metrics in ways.items()}
            events.add(progress.step, {"train/epoch_loss": line["loss"], **values})
        self._start_epoch()

    def _validate(self) -> Report:
        recipe = self.recipe
        encoders = torch_encoders(self.tuned.model, self.step.device)
        return evaluate(
            encoders,
            self.clips_val,
            num_workers=recipe.num_workers,
            cache=self._frame_cache(),
            progress=False,
        )

    def _save(self) -> None:
        if self.processes.is_main:
            self._write_state()
        self.processes.wait()

    def _write_state(self) -> None:
        trained = {
            name: tensor.detach() for name, tensor in trained_parameters(self.tuned.model).items()
        }
        state = self.step.state_dict()
        self.folder.save(SavedRun(self.clips_sha256, self.progress, trained, state))
