"""One linear layer in each engine and precision: what they reach without a model around it.

    python benchmarks/studies/products.py --threads 2

An engine whose int8 product is slower than torch's float32 cannot have an int8 model that is faster.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from dgl_bench.command import Threads, benchmark, say, with_threads
from dgl_bench.report import Report, Table
from dgl_bench.timing import time_paired
from dgl_export.graph_files import save_graph
from dgl_export.quantize import Quantizer, to_dynamic, to_qdq
from dgl_runtime.engines.onnx import session_options
from dgl_runtime.engines.openvino import compile_options, core

# The first layer of an MLP, on all tokens of a clip of 12 frames: rows, width, wider.
LAYERS = {
    "PE-Core-T-16-384": (12 * 576, 192, 768),
    "ViT-B-32-SigLIP2-256": (12 * 64, 768, 3072),
    "ViT-B-32": (12 * 50, 768, 3072),
}
Call = Callable[[], Any]


def layer(rows: int, width: int, wider: int) -> tuple[onnx.ModelProto, np.ndarray[Any, Any]]:
    """A graph of one product and sum, and an input; made numbers."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((width, wider), np.float32) / np.float32(np.sqrt(width))
    made = {"weight": weight, "bias": random.standard_normal(wider, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="linear"),
        helper.make_node("Add", ["product", "bias"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, width))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (rows, wider))],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, random.standard_normal((rows, width), np.float32)


def variants(
    model: onnx.ModelProto, x: np.ndarray[Any, Any], threads: int, folder: Path
) -> Iterator[tuple[str, Call]]:
    """Each engine and precision, as the exporter writes it and the runtime opens it."""
    weight, bias = (
        torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer
    )
    given, weight = torch.from_numpy(x), weight.T.contiguous()
    yield (
        "torch fp32",
        torch.inference_mode()(lambda: torch.nn.functional.linear(given, weight, bias)),
    )
    quantized = {"fp32": model, "int8": to_dynamic(model, ())}
    for precision, written in quantized.items():
        save_graph(written, path := folder / f"onnx-{precision}.onnx")
        session = onnxruntime.InferenceSession(
            path, session_options("cpu", threads), providers=["CPUExecutionProvider"]
        )
        yield f"ONNX Runtime {precision}", partial(session.run, None, {"x": x})
    quantized["int8"] = to_qdq(model, Quantizer.calibrated("int8", {"x": x}), ())
    for precision, written in quantized.items():
        save_graph(written, path := folder / f"openvino-{precision}.onnx")
        compiled = core().compile_model(path, "CPU", compile_options(precision, threads))
        request = compiled.create_infer_request()
        yield f"OpenVINO {precision}", partial(request.infer, {"x": x})


@benchmark
def products(threads: Threads = 2, rounds: int = 60) -> Report:
    """A linear layer of each model, in each engine and precision, against torch's in float32.

    Example: python benchmarks/studies/products.py --threads 2
    """
    torch.set_num_threads(threads)
    rows = []
    for name, (count, width, wider) in LAYERS.items():
        say(f"{name}: {count} rows, {width} to {wider}")
        model, x = layer(count, width, wider)
        with TemporaryDirectory() as folder:
            calls = dict(variants(model, x, threads, Path(folder)))
            paired = time_paired(calls, rounds=rounds, settle=2, label=name)
        for variant in calls:
            spread = paired.spread_ms(variant)
            rows.append(
                {
                    "layer": name,
                    "variant": variant,
                    "ms": spread,
                    "GFLOP/s": 2 * count * width * wider / spread.median / 1e6,
                    "than torch": paired.speedup(variant, "torch fp32"),
                }
            )
    return Report(
        with_threads("products", threads),
        "One linear layer in each engine and precision",
        [Table("Products", rows)],
        ["int8: as exported for the engine; GFLOP/s counts its products as float32's."],
    )


if __name__ == "__main__":
    products()
