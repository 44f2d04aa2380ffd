"""What OpenVINO can run on the CPU of this machine."""

import pytest


def has_bf16():
    """Whether the CPU has bfloat16."""
    from dgl_runtime.engines.openvino import core

    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def require_openvino(precision):
    """Skip a test where OpenVINO is missing, or the CPU has no bfloat16 and it is asked for."""
    pytest.importorskip("openvino")
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bfloat16")
