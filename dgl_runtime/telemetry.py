"""Libraries that report home of their own accord: switched off before any of them is loaded.

ONNX Runtime and huggingface_hub read a variable when they are imported, which child processes inherit.
OpenVINO has no such switch, but does without its reporting package where that cannot be imported.
"""

import os
import sys
from types import ModuleType
from typing import cast

_VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
_PACKAGES = ("openvino_telemetry",)


def switch_off_telemetry() -> None:
    """Keep libraries that are imported from now on, here and in child processes, from reporting home.

    Without this, importing them looks up hosts, which takes ten seconds where no name server answers,
    and leaves an identifier of the machine in the user's folders.
    """
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    for package in _PACKAGES:
        sys.modules.setdefault(package, cast(ModuleType, None))  # None: it cannot be imported
