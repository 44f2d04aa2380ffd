"""What is known about videos on this machine, by their content: a video is examined once in its life.

Two steps: a file that has not changed has the content it had, so that a known file is not even
opened; a content keeps what was found whatever its file is called.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from stat import S_ISREG

from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.errors import ConfigError

_EXAMINATION = 3  # one more whenever examine_video finds something else in the same file
_WAIT_S = 60.0  # for another process that writes


@dataclass(frozen=True)
class Finding:
    """What examining a video gave.

    Attributes:
        end_s: Where its pictures end, seconds of a player's clock; 0 if it cannot be read.
        fault: Why it cannot be used; None: it can.
        remark: What is odd about it, although it can be used; None: nothing.
    """

    end_s: float
    fault: str | None
    remark: str | None = None


@dataclass(frozen=True)
class FileState:
    """A regular file as it lies on the disk; any change of its bytes changes this."""

    path: str
    size_bytes: int
    modified_ns: int
    changed_ns: int


def state_of(path: Path) -> FileState | None:
    """The state of a file; None: there is no regular file."""
    try:
        state, resolved = path.stat(), path.resolve()
    except (OSError, ValueError):
        return None
    if not S_ISREG(state.st_mode):
        return None
    return FileState(str(resolved), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


class VerifyCache:
    """A small database; every finding is in it at once, so that Ctrl-C or a kill loses none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # A power cut may cost the cache, not a wait for the disk after every video.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size_bytes INTEGER, "
            "modified_ns INTEGER, changed_ns INTEGER, content TEXT)"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS findings (content TEXT PRIMARY KEY, end_s REAL, "
            "fault TEXT, remark TEXT)"
        )

    def findings(self) -> dict[str, Finding]:
        """Content -> finding, all of them."""
        rows = self._connection.execute("SELECT content, end_s, fault, remark FROM findings")
        return {content: Finding(*finding) for content, *finding in rows}

    def contents(self) -> dict[FileState, str]:
        """File -> its content, for every file as it was when it was examined."""
        rows = self._connection.execute("SELECT * FROM files")
        return {FileState(os.fsdecode(path), *facts): content for path, *facts, content in rows}

    def store(self, state: FileState, content: str, finding: Finding) -> None:
        """Keep what was found in a file."""
        self._connection.execute(
            "INSERT OR REPLACE INTO findings VALUES (?, ?, ?, ?)",
            (content, finding.end_s, finding.fault, finding.remark),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (
                os.fsencode(state.path),
                state.size_bytes,
                state.modified_ns,
                state.changed_ns,
                content,
            ),
        )


@contextmanager
def open_cache() -> Iterator[VerifyCache]:
    """Open the cache of this user: ``$XDG_CACHE_HOME/dgl-retrieval``, else ``~/.cache/...``.

    What decodes depends on the version of PyAV, so each version has a file of its own.

    Raises:
        ConfigError: The file cannot be written or is damaged.
    """
    path = cache_folder() / f"videos-{_EXAMINATION}-av{version('av')}.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as connection:
            yield VerifyCache(connection)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"the cache of verified videos {path} cannot be used: {error}. Delete it, or set "
        "XDG_CACHE_HOME to a folder that can be written."
    )
