"""Which videos a run of indexing looks for, and which of a gallery's files are gone since."""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgl_runtime.errors import MediaError
from dgl_runtime.media.video_files import FoundVideos, find_videos, is_left_out


@dataclass(frozen=True)
class Sought:
    """Videos that were looked for.

    Attributes:
        found: What was found.
        paths: The files and folders that were looked into.
        exclude: Patterns of what was left out.
        prune: Whether the gallery forgets what is below the folders and was not found.
    """

    found: FoundVideos
    paths: Sequence[Path]
    exclude: Sequence[str]
    prune: bool

    def missing(self, names: Iterable[str]) -> list[str]:
        """Files below the folders that are not there any more, or are left out now."""
        roots = [path.resolve() for path in self.paths]
        here = {str(video.resolve()) for video in self.found.videos}
        return [
            name
            for name in names
            if name not in here
            and any(root in Path(name).parents for root in roots)
            and (is_gone(name) or is_left_out(Path(name), self.paths, self.exclude))
        ]


def look_for_videos(paths: Sequence[Path], exclude: Sequence[str], *, prune: bool) -> Sought:
    """Find videos; that folders hold none is all right where a gallery is to forget what went.

    Raises:
        MediaError: A path does not exist, or there is no video.
    """
    try:
        found = find_videos(paths, exclude)
    except MediaError:
        if not prune or not all(path.is_dir() for path in paths):
            raise
        found = FoundVideos([], {})
    return Sought(found, paths, exclude, prune)


def is_gone(name: str) -> bool:
    """Whether there is no such file, but nothing or a link; one that may not be looked at is not gone."""
    try:
        return stat.S_ISLNK(os.lstat(name).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
