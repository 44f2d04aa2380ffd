"""GELU is written so that ONNX Runtime makes one operator of it, whichever of the two kinds it is."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dgl_export.to_onnx import write_text_encoder
from dgl_runtime.engines.onnx import session_options


class Small(nn.Module):
    def __init__(self, approximate):
        super().__init__()
        self.rows, self.layer = nn.Embedding(50, 16), nn.Linear(16, 32)
        self.gelu = nn.GELU(approximate)

    def forward(self, tokens):
        return self.gelu(self.layer(self.rows(tokens.long()))).mean(dim=1)


@pytest.mark.parametrize(("approximate", "one"), [("none", "BiasGelu"), ("tanh", "FastGelu")])
def test_gelu_is_one_operator_of_onnx_runtime(tmp_path, approximate, one):
    model, tokens = Small(approximate).eval(), torch.arange(8, dtype=torch.int32).view(2, 4)
    graph = write_text_encoder(model, tokens, tmp_path)
    options = session_options("cpu", 1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / graph.file), options)
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert one in operators
    assert not operators & {"Erf", "Tanh", "Div", "Pow"}
    (found,) = session.run(None, {"tokens": tokens.numpy()})
    np.testing.assert_allclose(found, model(tokens).detach().numpy(), rtol=0, atol=1e-6)
