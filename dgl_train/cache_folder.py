"""The folder of this user's caches: decoded frames, verified videos."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where this user's caches lie; each may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgl-retrieval"
