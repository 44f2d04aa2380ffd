"""The machine a figure or a fault depends on, named for reports: no host names, user names or paths."""

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dgl_runtime.engines.hardware import cpu_model


@dataclass(frozen=True)
class Machine:
    """Hardware and software a number depends on."""

    cpu: str
    cores: int  # this process may use
    memory_gb: float | None
    system: str
    python: str
    versions: dict[str, str]

    @property
    def slug(self) -> str:
        """The CPU's model, without its family, as part of a file name."""
        model = re.sub(r"\(r\)| \(family .*", "", self.cpu.lower())
        return re.sub(r"[^a-z0-9]+", "-", model).strip("-")

    def describe(self) -> str:
        """One line for people."""
        memory = f", {self.memory_gb:.0f} GB" if self.memory_gb else ""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores{memory}, {self.system}, "
            f"Python {self.python}; {versions}"
        )


def describe_machine(packages: Iterable[str]) -> Machine:
    """Name the machine; ``packages`` that are not installed are left out."""
    return Machine(
        cpu=cpu_model(),
        cores=_usable_cores(),
        memory_gb=_memory_gb(),
        system=f"{_system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(packages),
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
