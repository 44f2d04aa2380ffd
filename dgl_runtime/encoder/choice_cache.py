"""Choices of an engine that earlier starts made, cached in the user's folder; losing them costs seconds."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from dgl_runtime.cache_folder import cache_folder
from dgl_runtime.engines.candidates import Candidate
from dgl_runtime.engines.hardware import cpu_model, nvidia_gpus
from dgl_runtime.engines.installed import installed_version

_FORMAT = 1  # one more whenever an earlier choice may not be used any more
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedChoice:
    """A choice, and why it was made."""

    candidate: Candidate
    why: str


class ChoiceCache:
    """The one choice that fits a graph, its engine files, the candidates, the machine and the threads."""

    def __init__(
        self, graph: str, engines: Path, candidates: Sequence[Candidate], threads: int
    ) -> None:
        """Find the file.

        Args:
            graph: A name that no other graph of any bundle has.
            engines: Folder of the bundle's built engines, which need not exist.
            candidates: What there was to choose from.
            threads: As asked for.
        """
        on_gpu = any(one.device == "cuda" for one in candidates)
        key = [
            _FORMAT,
            [[one.engine, one.device, installed_version(one.engine)] for one in candidates],
            [cpu_model(), os.cpu_count(), threads],
            [asdict(gpu) for gpu in nvidia_gpus()] if on_gpu else [],
            _facts(engines) if on_gpu else [],
        ]
        digest = sha256(json.dumps(key).encode()).hexdigest()[:16]
        self._candidates = candidates
        try:
            self._path: Path | None = cache_folder() / "engines" / f"{graph}-{digest}.json"
        except RuntimeError:  # this user has no home folder
            self._path = None

    def read(self) -> CachedChoice | None:
        """The choice; None if there is none, or what is there is no choice among the candidates."""
        if self._path is None:
            return None
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            candidate = Candidate(kept["engine"], kept["device"])
            why = " ".join(str(kept["why"]).split())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return CachedChoice(candidate, why) if candidate in self._candidates else None

    def write(self, choice: CachedChoice) -> None:
        """Keep a choice; where nothing can be written, the next start measures again."""
        if self._path is None:
            return
        making = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**asdict(choice.candidate), "why": choice.why})
            making.write_text(text, encoding="utf-8")
            making.replace(self._path)
        except OSError as error:
            _LOG.info("the choice of %s is not kept: %s", choice.candidate.engine, error)
            with suppress(OSError):
                making.unlink()


def _facts(engines: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(engines.glob("*.engine")):
        with suppress(OSError):  # gone meanwhile
            facts = path.stat()
            found.append((path.name, facts.st_size, facts.st_mtime_ns))
    return found
