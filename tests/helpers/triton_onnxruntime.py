"""The backend "onnxruntime" for a Triton that has none: ONNX Runtime's package in its Python backend.

Triton loads this file as ``model.py``; ``paths`` beside it says where the packages are.
"""

import json
import sys
from pathlib import Path

sys.path += (Path(__file__).parent / "paths").read_text().splitlines()

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(
            args["model_repository"], args["model_version"], config["default_model_filename"]
        )
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count", {"string_value": "1"})
        options.intra_op_num_threads = int(threads["string_value"])
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [one["name"] for one in config["output"]]
        (self.input,) = (one["name"] for one in config["input"])

    def execute(self, requests):
        """All requests at once. By DLPack: the backend was built for a numpy before 2, and misreads ours."""
        given = [
            np.from_dlpack(triton.get_input_tensor_by_name(one, self.input)) for one in requests
        ]
        results = self.session.run(self.outputs, {self.input: np.concatenate(given)})
        ends = np.cumsum([len(one) for one in given])[:-1]
        parts = zip(*(np.split(result, ends) for result in results), strict=True)
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor.from_dlpack(name, np.array(part))
                    for name, part in zip(self.outputs, arrays, strict=True)
                ]
            )
            for arrays in parts
        ]
