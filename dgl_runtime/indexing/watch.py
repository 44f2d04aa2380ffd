"""Folders that grow: which videos to look at again, when they have come to rest."""

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from dgl_runtime.media.video_files import is_left_out, is_video, may_be_video

SETTLED_S = 3.0  # without a change, and a file counts as written


def changed_videos(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Iterator[list[Path]]:
    """Watch, and yield where to look: everywhere at first and when something went; else new files.

    A file that is still written is yielded when it has not changed for ``SETTLED_S``.

    Args:
        paths: Folders, and files that count as videos whatever they are called.
        exclude: Patterns of what is left out; see ``video_files.is_excluded``.
    """
    from watchfiles import Change, watch

    restless: dict[Path, float] = {}  # file -> when it changed last
    roots = [path.resolve() for path in paths]
    watching = watch(*roots, yield_on_timeout=True, rust_timeout=1000, step=200)
    first = next(watching)  # from here on nothing is missed, however long the first look takes
    yield roots
    for changes in chain([first], watching):
        now = time.monotonic()
        look_everywhere = False
        for change, name in changes:
            path = Path(name)
            if is_left_out(path, paths, exclude):
                continue
            if not may_be_video(path) and path not in roots:
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
        elif here := [path for path in settled if path in roots or is_video(path)]:
            yield here
