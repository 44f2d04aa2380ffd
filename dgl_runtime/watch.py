"""Folders that grow: which videos to look at again, when they have come to rest."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dgl_runtime.video import VIDEO_EXTENSIONS

SETTLED_S = 3.0  # without a change, and a file counts as written


def changed_videos(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Wait for videos to come, change or go, and yield where to look: new files; all folders when one went.

    A file that is still written is yielded when it has not changed for ``SETTLED_S``.
    """
    from watchfiles import Change, watch

    restless: dict[Path, float] = {}  # file -> when it changed last
    roots = [folder.resolve() for folder in folders]
    for changes in watch(*roots, yield_on_timeout=True, rust_timeout=1000, step=200):
        now = time.monotonic()
        has_gone = False
        for change, name in changes:
            path = Path(name)
            if path.suffix.lower() not in VIDEO_EXTENSIONS:
                continue
            if change is Change.deleted:
                restless.pop(path, None)
                has_gone = True
            else:
                restless[path] = now
        settled = [path for path, changed in restless.items() if now - changed >= SETTLED_S]
        for path in settled:
            del restless[path]
        if has_gone:
            yield roots
        elif here := [path for path in settled if path.is_file()]:
            yield here
