"""Whether the machine was quiet: how many of its cores worked for others during a run."""

import os
import time

import psutil

QUIET_CORES = 0.1  # busy for others, on average: what a system does for itself
_LOOK_S = 0.3


class OtherWork:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._busy_s, self._own_s = _busy_s(), _own_s()
        self._started = time.monotonic()

    def cores(self) -> float:
        """Cores that processes other than this one and its children have kept busy, on average."""
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return max(0.0, others_s / (time.monotonic() - self._started))


def busy_cores() -> float:
    """Cores that others keep busy now."""
    work = OtherWork()
    time.sleep(_LOOK_S)
    return work.cores()


def _busy_s() -> float:
    """CPU seconds of all cores since the system started, those that a hypervisor took away included."""
    times = psutil.cpu_times()._asdict()
    idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's are among user's already
    return float(sum(seconds for name, seconds in times.items() if name not in idle))


def _own_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
