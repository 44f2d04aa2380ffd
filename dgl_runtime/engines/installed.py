"""Which engines there are, what each needs, where it runs and what it reads; nothing is imported here."""

from dataclasses import dataclass
from importlib.util import find_spec

from dgl_runtime.errors import EngineError


@dataclass(frozen=True)
class EngineKind:
    """What can be known of an engine without loading it."""

    module: str
    distributions: tuple[str, ...]  # any of them brings the module
    extras: dict[str, str]  # device -> the extra of dgl-retrieval that brings it
    formats: tuple[str, ...]  # of bundles; those of TensorRT hold their ONNX file beside the engine

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it runs."""
        return tuple(self.extras)


KINDS = {
    "onnx": EngineKind(
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        {"cpu": "cpu", "cuda": "gpu"},
        ("onnx", "trt", "trt-rtx"),
    ),
    "openvino": EngineKind(
        "openvino",
        ("openvino",),
        {"cpu": "openvino"},
        ("onnx", "openvino", "trt", "trt-rtx"),
    ),
    "tensorrt": EngineKind(
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        {"cuda": "trt"},
        ("trt",),
    ),
    "trt-rtx": EngineKind(
        "tensorrt_rtx",
        ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        {"cuda": "trt-rtx"},
        ("trt-rtx",),
    ),
}


def is_installed(engine: str) -> bool:
    """Whether the engine's package is there; whether it works shows when it is loaded."""
    try:
        return find_spec(KINDS[engine].module) is not None
    except ImportError:
        return False


def installed_version(engine: str) -> str:
    """Versions of the engine's packages, or an empty text."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for distribution in KINDS[engine].distributions:
        try:
            found.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def how_to_install(engine: str, device: str) -> str:
    """The command that brings an engine for a device on which it runs."""
    return f"pip install 'dgl-retrieval[{KINDS[engine].extras[device]}]'"


def require(engine: str, device: str) -> None:
    """Refuse an engine that does not exist, is not installed, or does not run on a device.

    Raises:
        EngineError: Says what there is, and what to install.
    """
    if engine not in KINDS:
        raise EngineError(f"engine is {engine!r}; it must be one of {', '.join(KINDS)}.")
    kind = KINDS[engine]
    if device not in kind.devices:
        fitting = [name for name, other in KINDS.items() if device in other.devices]
        raise EngineError(
            f"engine {engine!r} runs on {', '.join(kind.devices)}, device is {device!r}. "
            f"Engines for {device}: {', '.join(fitting)}."
        )
    if not is_installed(engine):
        there = ", ".join(name for name in KINDS if is_installed(name)) or "none"
        raise EngineError(
            f"engine {engine!r} needs the package {kind.module!r}, which is not installed; "
            f"installed engines: {there}. Install it with: {how_to_install(engine, device)}"
        )
