"""A bundle's graph on a model server: checked before it is used, and asked so that requests can be joined."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dgl_runtime.bundle.folder import Bundle
from dgl_runtime.bundle.input_spec import TextSpec
from dgl_runtime.bundle.manifest import TEXT_ENCODER
from dgl_runtime.encoder.self_check import check_graph
from dgl_runtime.engines.engine import Arrays, Engine
from dgl_runtime.engines.triton import TritonEngine
from dgl_runtime.engines.triton_address import TritonAddress
from dgl_runtime.errors import EngineError

BUNDLE_ID = "bundle_id"  # the parameter of a served model that says whose graph it is
# A server joins requests of one shape: texts of nearly one length should have the same.
LENGTH_STEP = 8
_WRITE_AGAIN = "Write the server's repository again with: dgl-bundle triton {} REPOSITORY"


def served_name(bundle: Bundle, name: str) -> str:
    """What a server calls one of ``GRAPHS`` of a bundle.

    The bundle is part of it, so that no request can reach another bundle's graph: not even of a
    server that was started anew behind the same address meanwhile.
    """
    return f"{name}-{bundle.id}"


def open_served(bundle: Bundle, name: str, address: TritonAddress) -> Engine:
    """Find one of ``GRAPHS`` on a server, and run the golden inputs through it.

    Raises:
        EngineError: The server is away, has no such model, or one that is not this bundle's.
        BundleError: Its results are not the golden ones.
    """
    model = served_name(bundle, name)
    server = TritonEngine(address, model)
    if (found := server.parameters.get(BUNDLE_ID)) != bundle.id:
        raise EngineError(
            f"model {model} of the Triton server at {address.target} is of bundle {found}, expected "
            f"{bundle.id}. {_WRITE_AGAIN.format(bundle.folder)}"
        )
    engine: Engine = server
    if name == TEXT_ENCODER and bundle.manifest.inputs.texts.pad_to is None:
        engine = StepLengths(server, bundle.manifest.inputs.texts)
    check_graph(engine, bundle, name, remedy=_WRITE_AGAIN.format(bundle.folder))
    return engine


class StepLengths:
    """A text encoder that nobody asks for texts of odd lengths: rows are padded, which it does not see."""

    def __init__(self, engine: Engine, texts: TextSpec) -> None:
        self._engine, self._texts = engine, texts
        self.description = engine.description

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """As of the engine."""
        return self._engine.run({name: padded(ids, self._texts) for name, ids in inputs.items()})


def padded(tokens: Any, texts: TextSpec) -> Any:  # noqa: ANN401 - an array of any library
    """Token ids [Q, L] with L up to the next ``LENGTH_STEP``, but no longer than the model reads."""
    length = tokens.shape[1]
    missing = min(-length % LENGTH_STEP, max(0, texts.max_tokens - length))
    return np.pad(tokens, ((0, 0), (0, missing)), constant_values=texts.pad_id)
