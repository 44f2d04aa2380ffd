"""Search videos by text, without torch.

Example:
    from dgl_runtime import Retriever

    with Retriever("bundle", "gallery") as retriever:
        hits = retriever.search("a dog jumps into the lake")
"""

from dgl_runtime.encoder.encoder import ClipEmbeddings, Encoder, SelfCheck
from dgl_runtime.errors import DglError
from dgl_runtime.indexing.index import IndexReport
from dgl_runtime.indexing.ledger import BrokenVideo
from dgl_runtime.retriever import Retriever
from dgl_runtime.search.moments import Hit
from dgl_runtime.telemetry import switch_off_telemetry

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

switch_off_telemetry()  # every engine is imported later, on use
