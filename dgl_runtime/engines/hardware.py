"""The CPU and the NVIDIA GPUs of this machine, found without loading an engine."""

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# What the lower precisions need -> any of these flags in /proc/cpuinfo, x86 and ARM.
ABILITIES = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni", "asimddp"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "amx": ("amx_tile",),
}
_GPU_FIELDS = ("name", "driver_version", "compute_cap")  # as nvidia-smi calls those of NvidiaGpu
_WAIT_S = 20.0


@dataclass(frozen=True)
class NvidiaGpu:
    """A GPU that NVIDIA's driver lists."""

    name: str
    driver: str
    compute_capability: str


def cpu_model() -> str:
    """The CPU's model as its maker calls it, with family and model where the system tells them.

    Virtual machines call CPUs of several generations by one name.
    """
    found = None
    if CPUINFO.exists():
        lines = r"^(model name|cpu family|model)\s*:\s*(.+)$"
        told = dict(re.findall(lines, CPUINFO.read_text("utf-8"), re.MULTILINE))
        if {"model name", "cpu family", "model"} <= told.keys():
            name = " ".join(told["model name"].split())
            return f"{name} (family {told['cpu family']}, model {told['model']})"
        found = re.match(r"(.+)", told.get("model name", ""))
    elif platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        brand = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = re.match(r"(.+)", brand)
    model = found[1] if found else platform.processor() or f"unknown {platform.machine()}"
    return " ".join(model.split())


def cpu_abilities() -> dict[str, bool] | None:
    """Which of ``ABILITIES`` the CPU has; None where the system does not tell."""
    if not CPUINFO.exists():
        return None
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", CPUINFO.read_text("utf-8"), re.MULTILINE)
    flags = set(lines[0].split()) if lines else set()
    return {name: not flags.isdisjoint(any_of) for name, any_of in ABILITIES.items()}


def nvidia_gpus() -> list[NvidiaGpu]:
    """The GPUs of NVIDIA's driver; none without a driver that works."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run(
            [command, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_WAIT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in listed.splitlines()]
    return [NvidiaGpu(*row) for row in rows if len(row) == len(_GPU_FIELDS)]


def cuda_of_driver() -> str:
    """The newest CUDA that the driver runs, such as 13.0; empty without a driver or cuda-python."""
    try:
        from cuda.bindings import runtime

        code, number = runtime.cudaDriverGetVersion()
    except (ImportError, RuntimeError):
        return ""
    return f"{number // 1000}.{number % 1000 // 10}" if not int(code) and number else ""
