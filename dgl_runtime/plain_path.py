"""Paths for libraries that take UTF-8 alone: the name of a file or folder may be any bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """A path in UTF-8 to the same file, or to where it is to be made, for as long as the context lasts.

    Where the path is none itself, it leads through a link to its folder, so that files beside it are found.
    """
    if _is_plain(path):
        yield path
        return
    with TemporaryDirectory(prefix="dgl-") as folder:
        link = Path(folder, "folder")
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        through = link / path.name
        if not _is_plain(through):  # its own name, too
            through = Path(folder, f"file{path.suffix if _is_plain(Path(path.suffix)) else ''}")
            through.symlink_to(path.absolute())
        yield through


def _is_plain(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
