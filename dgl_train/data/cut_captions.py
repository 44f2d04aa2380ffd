"""Captions that are longer than what a model reads of them."""

from collections.abc import Sequence

from dgl_runtime.bundle.tokenizer import Tokenizer


def warn_of_cut_captions(captions: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """One line if captions are longer than that; None: none is."""
    count = tokenizer.count_cut(captions)
    if not count:
        return None
    return (
        f"Warning: {count:,} of {len(captions):,} captions are longer than max_tokens, "
        f"{tokenizer.spec.max_tokens} tokens, "
        "and only their beginning is read."
    )
