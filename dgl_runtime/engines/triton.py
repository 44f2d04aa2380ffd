"""A graph that a Triton Inference Server runs, asked over gRPC; what it does not run is an error."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dgl_runtime.engines.engine import Arrays
from dgl_runtime.engines.triton_address import TritonAddress
from dgl_runtime.errors import EngineError, reason_of

if TYPE_CHECKING:
    from tritonclient.utils import InferenceServerException

INSTALL = "pip install 'dgl-retrieval[triton]'"
_FACTS_S = 10.0  # how long the server may take to say what it has
_RUN_S = 120.0  # and to run one request, its waiting included
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC would wait for up to two minutes before it looks again for a server that was away.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_REMEDY = {
    "UNAVAILABLE": "Start it, wait until it is ready, or correct the address: it is that of its gRPC "
    "port, by default 8001, and tritons: over TLS.",
    "DEADLINE_EXCEEDED": "Check the server, and the network on the way to it.",
}


class TritonEngine:
    """One model of a server; several threads may run it at once.

    A connection that is lost is made again by the next run.
    """

    def __init__(self, address: TritonAddress, model: str) -> None:
        """Look the model up on the server.

        Raises:
            EngineError: The package, the server or the model is missing.
        """
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is in the error, not beside it
        try:
            import tritonclient.grpc as triton
        except (ImportError, RuntimeError) as error:  # the latter: without its part for gRPC
            raise EngineError(
                f"engine triton needs the package 'tritonclient', which is not installed: "
                f"{reason_of(error)}. Install it with: {INSTALL}"
            ) from error
        self._triton, self._address, self._model = triton, address, model
        self._client = triton.InferenceServerClient(
            address.target, ssl=address.is_encrypted, channel_args=_CHANNEL
        )
        try:
            version = self._client.get_server_metadata(client_timeout=_FACTS_S).version
            self._require_model()
            config = self._client.get_model_config(model, client_timeout=_FACTS_S).config
        except triton.InferenceServerException as error:
            raise self._fault("does not say what it has", error) from error
        self._most = max(1, config.max_batch_size)
        self.parameters = {name: one.string_value for name, one in config.parameters.items()}
        self.description = f"Triton {version} at {address.target} ({config.backend})"

    def _require_model(self) -> None:
        listed = self._client.get_model_repository_index(client_timeout=_FACTS_S).models
        if all(one.name != self._model for one in listed):
            there = ", ".join(sorted({one.name for one in listed})) or "none"
            raise EngineError(
                f"the Triton server at {self._address.target} has no model {self._model}; it has: {there}. "
                "Add it to the server's repository with: dgl-bundle triton BUNDLE REPOSITORY"
            )

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Named arrays in, named arrays out, in as many requests as the model's largest batch makes of them.

        Raises:
            EngineError: The server is away, or does not run the model.
        """
        count = len(next(iter(inputs.values())))
        parts = [
            self._ask({name: array[first : first + self._most] for name, array in inputs.items()})
            for first in range(0, count, self._most)
        ]
        # What the client gives may not be written to; this is a copy.
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _ask(self, inputs: Mapping[str, Any]) -> Arrays:
        asked = []
        for name, array in inputs.items():
            kind = self._triton.np_to_triton_dtype(array.dtype)
            asked.append(self._triton.InferInput(name, list(array.shape), kind))
            asked[-1].set_data_from_numpy(array)
        try:
            found = self._client.infer(self._model, asked, client_timeout=_RUN_S)
        except self._triton.InferenceServerException as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise self._fault(f"does not run {self._model} on {shapes}", error) from error
        return {one.name: found.as_numpy(one.name) for one in found.get_response().outputs}

    def _fault(self, what: str, error: "InferenceServerException") -> EngineError:
        status = str(error.status() or "").removeprefix("StatusCode.")
        reason = reason_of(RuntimeError(error.message() or status))
        remedy = _REMEDY.get(status, "Its log says more.")
        return EngineError(
            f"the Triton server at {self._address.target} {what}: {reason}. {remedy}"
        )
