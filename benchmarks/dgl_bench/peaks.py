"""What torch reaches on this machine in one large product and one large read: a yardstick, not a limit."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dgl_runtime.engines.hardware import cpu_abilities

MATRIX_SIDE = 3072
MEMORY_BYTES = 2**29  # more than any cache
_REPEATS = 10
# Without bf16 in the CPU torch takes many minutes for such a product.
_NEEDED = {"bf16": "bf16", "int8": "vnni"}


@dataclass(frozen=True)
class Peaks:
    """What torch reaches at a number of threads; another library may pass it."""

    flop_per_s: dict[str, float]  # precision that the CPU has -> rate of a large matrix product
    bytes_per_s: float  # reading and copying a large array, the faster of both

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.flop_per_s.items())
        return f"{rates} GFLOP/s (int8: GOP/s), memory {self.bytes_per_s / 1e9:.1f} GB/s"


def measure_peaks(device: str = "cpu") -> Peaks:
    """Time large matrix products and a large read and copy in torch, at its number of threads."""
    import torch

    def product(kind: torch.dtype) -> Callable[[], object]:
        square = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=kind, device=device)
        if kind == torch.int8:
            return lambda: torch._int_mm(square, square)
        return lambda: square @ square

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
    if device == "cuda":
        kinds["fp16"] = torch.float16
    elif (has := cpu_abilities()) is not None:
        kinds = {name: kind for name, kind in kinds.items() if has.get(_NEEDED.get(name, ""), True)}
    rates = {}
    for name, kind in kinds.items():
        rates[name] = 2 * MATRIX_SIDE**3 / _fastest(product(kind), device)
    memory = torch.ones(MEMORY_BYTES // 4, device=device)
    first, second = memory.chunk(2)
    moved_s = min(_fastest(memory.sum, device), _fastest(lambda: second.copy_(first), device))
    return Peaks(rates, memory.nbytes / moved_s)


def _fastest(call: Callable[[], object], device: str) -> float:
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    call()
    seconds = []
    for _ in range(_REPEATS):
        wait()
        started = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
