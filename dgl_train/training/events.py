"""TensorBoard events of a run, beside its metrics.jsonl: what each step and each epoch gave."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from dgl_runtime.plain_path import plain_path


class Events:
    """Writes scalars to ``folder``; a resumed run hides what a killed one wrote beyond its step."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with ExitStack() as held:
            plain = held.enter_context(plain_path(folder))
            self._writer = SummaryWriter(str(plain), purge_step=first_step)
            held.callback(self._writer.close)
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._held.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Note values under their names."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
