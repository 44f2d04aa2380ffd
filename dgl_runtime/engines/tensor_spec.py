"""What a graph takes and gives: names, dtypes and shapes."""

from dataclasses import dataclass
from typing import Any

from dgl_runtime.typed_fields import typed


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension that is a text is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def read_specs(data: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Tensors as JSON gave them.

    Raises:
        TypeError: A field is missing, unknown or of another type.
    """
    return tuple(typed(TensorSpec(**{**one, "shape": tuple(one["shape"])})) for one in data)
