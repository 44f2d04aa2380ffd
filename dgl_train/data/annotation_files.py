"""Files of a data root: annotation files found and read without trust, videos found by their stem."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dgl_runtime.errors import ConfigError, TextError, reason_of
from dgl_runtime.media.video_files import videos_below

Content = TypeVar("Content")
VIDEO_FOLDER = "videos"

# Whatever Python raises when a file does not hold what was expected.
_UNEXPECTED = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError, pickle.PickleError,
    TextError,
)  # fmt: skip


def read_annotation(data_root: Path, name: str, parse: Callable[[Path], Content]) -> Content:
    """Find one annotation file in the data root, or in a folder there, and read it.

    Raises:
        ConfigError: The file is missing, cannot be read, or ``parse`` finds something unexpected.
    """
    path = _find(data_root, name)
    try:
        return parse(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check it.") from error
    except _UNEXPECTED as error:
        reason = (
            str(error).removeprefix(f"{path} ").rstrip(".")
            if isinstance(error, TextError)
            else f"{type(error).__name__}: {reason_of(error)}"
        )
        raise ConfigError(
            f"{path} is not as published ({reason}). Get it again; docs/datasets.md says where."
        ) from error


def _find(data_root: Path, name: str) -> Path:
    for path in [data_root / name, *sorted(data_root.glob(f"*/{name}"))]:
        if path.is_file():
            return path
    raise ConfigError(
        f"{name} is missing: it is neither in {data_root} nor in a folder there, such as "
        f"{data_root / 'annotations'}. docs/datasets.md says where to get it."
    )


def index_videos(data_root: Path) -> dict[str, Path]:
    """Every video below DATA_ROOT/videos, or below DATA_ROOT where there is no such folder.

    Returns:
        Stem -> file; the stem is the file name without its extension, its case kept. Of several
        files with one stem the first in alphabetical order counts.
    """
    top = data_root / VIDEO_FOLDER
    found: dict[str, Path] = {}
    for path in videos_below(top if top.is_dir() else data_root, follow_links=False):
        found.setdefault(path.stem, path)
    return found


def load_plain_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load a pickle of dicts, lists, tuples, texts and numbers; nothing in it is ever called.

    Raises:
        UnpicklingError: If the file names a class or a function.
    """
    with path.open("rb") as file:
        # Pickles of Python 2 hold texts as bytes.
        return _PlainUnpickler(file, encoding="utf-8").load()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, expected plain containers")
