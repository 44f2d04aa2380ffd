"""Folders that grow: which videos to look at again, when they have come to rest."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from dgl_runtime.video import VIDEO_EXTENSIONS

SETTLED_S = 3.0  # without a change, and a file counts as written


def changed_videos(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Watch, and yield where to look: all folders at first and when something went; else new files.

    A file that is still written is yielded when it has not changed for ``SETTLED_S``.
    """
    from watchfiles import Change, watch

    restless: dict[Path, float] = {}  # file -> when it changed last
    roots = [folder.resolve() for folder in folders]
    watching = watch(*roots, yield_on_timeout=True, rust_timeout=1000, step=200)
    first = next(watching)  # from here on nothing is missed, however long the first look takes
    yield roots
    for changes in chain([first], watching):
        now = time.monotonic()
        look_everywhere = False
        for change, name in changes:
            path = Path(name)
            if any(part.startswith(".") for part in _below(path, roots).parts):
                continue
            if path.suffix.lower() not in VIDEO_EXTENSIONS:
                # Of a folder that came or went nothing is said about the files in it.
                look_everywhere |= change is Change.deleted or path.is_dir()
            elif change is Change.deleted:
                restless.pop(path, None)
                look_everywhere = True
            else:
                restless[path] = now
        settled = [path for path, changed in restless.items() if now - changed >= SETTLED_S]
        for path in settled:
            del restless[path]
        if look_everywhere:
            yield roots
        elif here := [path for path in settled if path.is_file()]:
            yield here


def _below(path: Path, roots: Sequence[Path]) -> Path:
    """A path from the folder on that is watched."""
    return next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path)
