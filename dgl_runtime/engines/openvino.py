"""OpenVINO on the CPU: float32, bfloat16 where the CPU has it, int8."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from dgl_runtime.engines.engine import Arrays
from dgl_runtime.errors import EngineError, reason_of
from dgl_runtime.plain_path import plain_path

if TYPE_CHECKING:
    import openvino

# What OpenVINO computes in. float16 is a way of storing weights here; int8 graphs carry their own
# scales, and the rest of them is float32.
_HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}


@cache
def core() -> "openvino.Core":
    """The process's one openvino.Core, which lives as long as the process.

    The CPU plugin gives the thread that loads it a stack for signals and frees that stack when the
    last Core goes; where another thread lets it go, the next Ctrl-C has no stack and the process
    dies of a segmentation fault.
    """
    import openvino

    return openvino.Core()


def require_precision(precision: str) -> None:
    """Refuse what OpenVINO does not compute in on this CPU.

    Raises:
        EngineError: Says what it has.
    """
    if precision not in _HINTS:
        raise EngineError(
            f"OpenVINO on the CPU runs {', '.join(_HINTS)}; the graph is {precision}."
        )
    abilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in abilities:
        raise EngineError(
            f"this CPU has no bfloat16 (it has {', '.join(abilities)}); "
            "use a bundle of another precision."
        )


def compile_options(precision: str, threads: int) -> dict[str, Any]:
    """How this engine compiles every graph."""
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    return options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


class OpenVinoEngine:
    """One graph in OpenVINO.

    It keeps what it prepared for each shape it has seen, at most 5,000 of them, so that memory is
    flat after some hundred requests of mixed shapes.
    """

    def __init__(self, graph: Path, *, threads: int, precision: str) -> None:
        """Load an ONNX file or an OpenVINO model (.xml).

        Raises:
            EngineError: A precision that the CPU does not have, or a graph that does not load.
        """
        import openvino

        require_precision(precision)
        try:
            with plain_path(graph) as plain:
                options = compile_options(precision, threads)
                model = core().compile_model(str(plain), "CPU", options)
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise EngineError(f"{graph} does not load in OpenVINO: {reason_of(error)}") from error
        # One request for all threads: each run uses all cores, so several at once are no faster.
        self._request = model.create_infer_request()
        self._lock = Lock()
        self._outputs = {name: port for port in model.outputs for name in port.names}
        self.description = f"OpenVINO {openvino.__version__.partition('-')[0]} (cpu, {precision})"

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Named arrays in, named arrays out.

        Raises:
            EngineError: The graph does not run.
        """
        try:
            with self._lock:  # inputs are shared, results are copied
                results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise EngineError(
                f"{self.description} could not run the graph on {shapes}: {reason_of(error)}"
            ) from error
        return {name: results[port] for name, port in self._outputs.items()}
