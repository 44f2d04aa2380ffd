"""How processes that read clips are started, and the error when one is lost."""

from pathlib import Path
from typing import TypeVar

from dgl_runtime.decoding.decode_process import Limits, LostWorkerError
from dgl_runtime.decoding.workers import Workers
from dgl_runtime.errors import MediaError

Task = TypeVar("Task")


def read_workers(count: int) -> Workers[Task]:
    """Some of them, each running ``read_worker.py``."""
    return Workers(count, Limits(), "dgl_train.data.read_worker")


def lost_at(video: Path, loss: LostWorkerError, setting: str) -> MediaError:
    """What to tell who waited for a video; ``setting`` says how many processes there are."""
    if loss.is_videos_fault:
        return MediaError(f"{video} {loss}. Play it to check, and re-encode it or leave it out.")
    return MediaError(
        f"{video} {loss}, perhaps for want of memory. If that comes again, lower {setting}."
    )
