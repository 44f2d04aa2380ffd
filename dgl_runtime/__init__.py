"""Search videos by text, without torch.

Example:
    from dgl_runtime import Retriever

    with Retriever("bundle", "gallery") as retriever:
        hits = retriever.search("a dog jumps into the lake")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dgl_runtime.telemetry import switch_off_telemetry

if TYPE_CHECKING:
    from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder, SelfCheck
    from dgl_runtime.errors import DglError
    from dgl_runtime.indexing.index import IndexReport
    from dgl_runtime.indexing.ledger import BrokenVideo
    from dgl_runtime.retriever import Retriever
    from dgl_runtime.search.moments import Hit

__all__ = [
    "BrokenVideo",
    "ClipEmbeddings",
    "DglError",
    "Encoder",
    "Hit",
    "IndexReport",
    "Retriever",
    "SelfCheck",
]

_HOMES = {
    "BrokenVideo": "indexing.ledger",
    "ClipEmbeddings": "encoder.encoder",
    "DglError": "errors",
    "Encoder": "encoder.encoder",
    "Hit": "search.moments",
    "IndexReport": "indexing.index",
    "Retriever": "retriever",
    "SelfCheck": "encoder.encoder",
}

switch_off_telemetry()  # every engine is imported later, on use


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: a process that decodes videos needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dgl_runtime' has no attribute {name!r}")
    return getattr(import_module(f"dgl_runtime.{_HOMES[name]}"), name)
