"""Run in a process of its own: our builder and engine on TensorRT's real Python bindings.

The bindings stand on libraries that give nothing (stand_in_libraries.cpp). So names and enumerations are
the real ones, and objects are made here: builder objects allow only attributes of the real classes.
Prints one JSON document.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import create_autospec, patch

import numpy as np

from dgl_runtime.engines.opening import open_engine
from dgl_runtime.engines.tensorrt_build import build_engine
from dgl_runtime.engines.tensorrt_library import load_library
from dgl_runtime.errors import ExportError
from tests.helpers import fake_tensorrt
from tests.helpers.engine_files import PROFILES, make_engine, make_graph
from tests.helpers.fake_cuda import FakeCuda


def like(real):
    return create_autospec(real, instance=True)


def make_builder(trt):
    """A builder whose every object knows the names of its real class and no others."""
    builder, network = like(trt.Builder), like(trt.INetworkDefinition)
    network.num_inputs = 1
    network.get_input.return_value = like(trt.ITensor)
    network.get_input.return_value.name = "tokens"
    builder.create_network.return_value = network
    builder.create_builder_config.return_value = like(trt.IBuilderConfig)
    builder.create_optimization_profile.return_value = like(trt.IOptimizationProfile)
    builder.build_serialized_network.return_value = b"engine"
    return builder


def make_parser(trt, *, faulty):
    parser, fault = like(trt.OnnxParser), like(trt.ParserError)
    parser.parse_from_file.return_value = not faulty
    parser.num_errors = 1
    parser.get_error.return_value = fault
    fault.desc.return_value, fault.node_name.return_value = "Plugin not found", "node_7"
    fault.node_operator.return_value = "Strange"
    return parser


def build(trt, **parser):
    """What the builder was asked for, or our error."""
    builder, made_parser = make_builder(trt), make_parser(trt, **parser)
    try:
        with (
            patch.object(trt, "Builder", lambda _: builder),
            patch.object(trt, "OnnxParser", lambda *_: made_parser),
        ):
            engine = build_engine(Path("text_encoder.onnx"), PROFILES["text_encoder"], trt)
    except ExportError as error:
        return str(error)
    profile = builder.create_optimization_profile.return_value
    config = builder.create_builder_config.return_value
    return {
        "engine": engine.decode(),
        "strongly_typed_flag": builder.create_network.call_args.args[0] != 0,
        "shapes": [call.args for call in profile.set_shape.call_args_list],
        "profiles": config.add_optimization_profile.call_count,
        "cleared": [str(call.args[0]) for call in config.clear_flag.call_args_list],
    }


def run(trt, folder):
    """Whether the runtime engine, on the real module with stand-in objects, gives the right numbers."""
    bindings, cuda = ModuleType("cuda.bindings"), FakeCuda()
    bindings.runtime = cuda
    sys.modules |= {"cuda": ModuleType("cuda"), "cuda.bindings": bindings}
    trt.Runtime, fake_tensorrt.Runtime.cuda = fake_tensorrt.Runtime, cuda
    graph = make_graph(folder)
    make_engine(graph, version=trt.__version__)
    engine = open_engine(graph, device="cuda", threads=0, engine="tensorrt")
    x = np.arange(12, dtype=np.int32).reshape(2, 6)
    outputs = [engine.run({"tokens": x})["embedding"] for _ in range(3)]
    return all(np.array_equal(out, fake_tensorrt.compute(x, 5)) for out in outputs)


if __name__ == "__main__":
    trt = load_library("tensorrt")
    found = {"version": trt.__version__, "unknown": fake_tensorrt.unknown_names(trt)}
    try:
        build_engine(Path("text_encoder.onnx"), PROFILES["text_encoder"], trt)
    except ExportError as error:
        found["no library"] = str(error)
    found["built"] = build(trt, faulty=False)
    found["refused"] = build(trt, faulty=True)
    found["ran"] = run(trt, Path(sys.argv[1]))
    sys.stdout.write(json.dumps(found))
