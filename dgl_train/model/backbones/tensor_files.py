"""Files of tensors, read without running what stands in them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.plain_path import plain_path


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header of a .safetensors file, and its tensors.

    Raises:
        ConfigError: It cannot be read, or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with plain_path(path) as plain, safe_open(plain, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path} is not a readable safetensors file: {reason_of(error)}"
        ) from error


def read_torch_file(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """What ``torch.save`` wrote.

    Raises:
        ConfigError: It cannot be read, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        raise ConfigError(
            f"{path} is not a torch checkpoint that loads safely: {reason_of(error)}"
        ) from error
