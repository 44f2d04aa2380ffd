"""How many bytes an installation takes: the files of a distribution and of all that it needs."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class InstalledSize:
    """An installation, by what its packages' RECORD files list.

    Attributes:
        requirement: What pip would be asked for.
        sizes: Bytes of each distribution it needs, itself included.
        missing: Distributions and extras it needs that are not installed here, so that its size is
            unknown.
    """

    requirement: str
    sizes: dict[str, int]
    missing: tuple[str, ...]

    @property
    def total_bytes(self) -> int | None:
        """All of them; None if some are missing."""
        return None if self.missing else sum(self.sizes.values())


def measure_size(requirement: str) -> InstalledSize:
    """Follow a requirement, such as ``dgl-retrieval[cpu]``, through what is installed here."""
    sizes: dict[str, int] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        sizes.setdefault(name, _bytes_of(found))
        known = {canonicalize_name(one) for one in found.metadata.get_all("Provides-Extra") or []}
        for extra in ("", *asked.extras):
            if extra and canonicalize_name(extra) not in known:
                missing.add(f"{name}[{extra}]")
            elif (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _needed(found, extra)
    return InstalledSize(requirement, sizes, tuple(sorted(missing)))


def _needed(found: Distribution, extra: str) -> Iterator[Requirement]:
    """What a distribution needs on this machine for one of its extras; "" is none."""
    for line in found.requires or []:
        needed = Requirement(line)
        if needed.marker is None:
            if not extra:
                yield needed
        elif needed.marker.evaluate({"extra": extra}):
            yield needed


def _bytes_of(found: Distribution) -> int:
    """The files of a distribution; those without a size in RECORD (compiled code) by looking."""
    total = 0
    for file in found.files or []:
        if file.size is not None:
            total += file.size
        elif (path := Path(file.locate())).exists():
            total += path.stat().st_size
    return total
