"""A Ray cluster: how to reach it, and whether its machines see what they are to work on."""

import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from dgl_runtime.command import report_note
from dgl_runtime.errors import ClusterError, DglError, reason_of

_PACKAGE = "dgl-retrieval"
_OURS = re.compile(r"^\s*dgl_runtime\.errors\.\w+: (.+?)\.?$", re.MULTILINE)
_WAIT_S = 60.0  # for an answer of each machine
_LOOK_S = 5.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would call its makers
    # What it writes for its developers; its logs keep it.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be of a cluster; what goes wrong in it is told as ours.

    Args:
        address: ``auto`` (the cluster this machine is of), ``local`` (this machine alone) or ``HOST:PORT``.

    Raises:
        ClusterError: There is none, or it was lost.
        DglError: What one of its processes raised.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        _require_listener(address)
        ray.init(
            address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster is reached at {address!r}: {reason_of(error)}. Start one with `ray start --head`, "
            "join others to it with `ray start --address HOST:PORT`, and share its token (RAY_AUTH_MODE=token)."
        ) from error
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.raise_original_map_exception = True  # whose words are ours
    settings.execution_no_progress_timeout_s = -1  # a long video may be looked through for hours
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DglError):
            raise cause from error
        told = _OURS.findall(str(error))  # what ends an actor as it begins comes as text alone
        reason = told[-1] if told else reason_of(cause or error)
        raise ClusterError(
            f"the Ray cluster failed: {reason}. What was indexed is in the gallery; give the same command "
            "again."
        ) from error
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Look whether anything listens, which Ray would wait for for many minutes.

    Raises:
        OSError: Nothing does.
        ValueError: It is no HOST:PORT.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError("it is neither auto nor local nor HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S).close()


class Machines:
    """Those of the cluster, and which of them are lost."""

    def __init__(self) -> None:
        self._alive, self._looked = _alive(), time.monotonic()

    def tell_lost(self) -> None:
        """Say once of each machine that it is lost; looks every few seconds at most."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        now, self._looked = _alive(), time.monotonic()
        for lost in self._alive.keys() - now.keys():
            report_note(
                f"machine {self._alive[lost]} of the Ray cluster is lost; others read again what it was at."
            )
        self._alive = now


def _alive() -> dict[str, str]:
    """The machines that are there: their IDs and addresses."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def require_all_see(paths: Sequence[Path]) -> None:
    """Ask every machine whether it has this version and sees these paths.

    Raises:
        ClusterError: One has not, or does not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
    def look(names: list[str]) -> tuple[str, list[str]]:
        return version(_PACKAGE), [name for name in names if not Path(name).exists()]

    ours, names = version(_PACKAGE), [str(path.absolute()) for path in paths]
    for node, machine in _alive().items():
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        told = f"machine {machine} of the Ray cluster"
        try:
            answer = look.options(scheduling_strategy=place).remote(names)
            theirs, absent = ray.get(answer, timeout=_WAIT_S)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"{told} does not answer as it should: {reason_of(error)}. Install {_PACKAGE} {ours} with "
                "the extra ray there, under the same Python as here."
            ) from error
        if theirs != ours:
            raise ClusterError(
                f"{told} has {_PACKAGE} {theirs}, this one {ours}. Install the same on all of them."
            )
        if absent:
            raise ClusterError(
                f"{told} does not see {absent[0]}. All of them must see bundle and videos under the same "
                "paths: mount a shared folder (NFS, say)."
            )


def cores_and_gpus() -> tuple[int, int, int]:
    """What the cluster has: CPU cores, GPUs, machines."""
    import ray

    found = ray.cluster_resources()
    return int(found.get("CPU", 1)), int(found.get("GPU", 0)), len(_alive())
