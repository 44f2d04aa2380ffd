"""The folder of this user's caches: decoded frames, verified videos, measured choices of an engine."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where this user's caches lie; each may be deleted at any time.

    ``$XDG_CACHE_HOME`` counts on every system; without it, the system's own place.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "dgl-retrieval"
