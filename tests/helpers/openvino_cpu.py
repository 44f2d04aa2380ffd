"""What OpenVINO can run on the CPU of this machine."""

import pytest


def require_openvino(precision: str) -> None:
    """Skip a test where OpenVINO is missing, or the CPU has no bfloat16 and it is asked for."""
    pytest.importorskip("openvino")
    from dgl_runtime.engines.openvino import core

    if precision == "bf16" and "BF16" not in core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        pytest.skip("this CPU has no bfloat16")
