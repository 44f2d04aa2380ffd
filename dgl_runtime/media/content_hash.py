"""The sha256 of a video's bytes: the same video under any name."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from dgl_runtime.errors import MediaError

_BLOCK = 2**22


def content_hash(path: Path, sign: Callable[[], None] = lambda: None) -> str:
    """Hash a file, as hex.

    Args:
        path: The file.
        sign: Called after each few megabytes.

    Raises:
        MediaError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                sign()
    except OSError as error:
        raise MediaError(
            f"{path} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    return digest.hexdigest()
