"""One training run in one process or in several, started by ``torchrun``.

Every process holds the whole model and a share of each batch. Embeddings are gathered, every process
sees the loss of the whole batch, and gradients are summed: the numbers are those of one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from dgl_runtime.errors import ConfigError, reason_of

_PATIENCE = timedelta(hours=12)


class Processes:
    """This process among all of the run; ``device_type`` is "cpu" or "cuda", as the run computes."""

    def __init__(self, device_type: str = "cpu") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState

            # It picks the backend, joins the group, and takes this process's GPU.
            # Others wait while the main process verifies a large data set for the first time.
            self._state = PartialState(cpu=device_type == "cpu", timeout=_PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, asked: torch.device) -> torch.device:
        """Where this process computes: its own GPU, or what was asked for."""
        if self._state is None or asked.type == "cpu":
            return asked
        device: torch.device = self._state.device
        return device

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows [n, ...] of every process, in the order of ranks; no gradient flows through."""
        if self.count == 1:
            return tensor.detach()
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        with _while_all_are_there():
            torch.distributed.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def sum(self, tensor: Tensor) -> None:
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            with _while_all_are_there():
                torch.distributed.all_reduce(tensor)

    def any(self, is_set: bool) -> bool:
        """Whether it is set in any process; all get the same answer."""
        if self.count == 1:
            return is_set
        flag = torch.tensor([float(is_set)], device=self._state.device)
        self.sum(flag)
        return bool(flag.item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does it, then all others: they find what it left in a cache."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            with _while_all_are_there():
                self._state.wait_for_everyone()


@contextmanager
def _while_all_are_there() -> Iterator[None]:
    """One that is waited for and has ended is an error on one line."""
    try:
        yield
    except RuntimeError as error:  # of gloo or NCCL
        raise ConfigError(
            f"another process of this run has ended: {reason_of(error)}. Its own message says why; "
            "then resume with the same command and --resume."
        ) from error
