"""What an engine is: arrays in, arrays out."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]


class Engine(Protocol):
    """A loaded graph; several threads may run it at once."""

    description: str

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Named arrays in, named numpy arrays out, which belong to the caller.

        Engines on cuda also take arrays that lie there: all that speaks DLPack or
        ``__cuda_array_interface__`` (pycuda, cupy, torch) goes in without a copy through the host.
        """
        ...
