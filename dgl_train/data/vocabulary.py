"""CLIP's vocabulary, out of the file that open_clip ships."""

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from dgl_runtime.bundle.tokenizer import Tokenizer

# The file holds more merges than CLIP uses: 49,152 pieces less 256 bytes less 2 special tokens.
_MERGES = 49152 - 256 - 2


@cache
def clip_tokenizer() -> Tokenizer:
    """The tokenizer of every backbone we support."""
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _MERGES + 1]
    return Tokenizer.from_merges([(first, second) for first, second in map(str.split, lines)])


def warn_of_cut_captions(captions: Sequence[str], max_words: int) -> str | None:
    """One line if captions are longer than what a model reads of them; None: none is."""
    count = clip_tokenizer().count_cut(captions, max_words)
    if not count:
        return None
    return (
        f"Warning: {count:,} of {len(captions):,} captions are longer than max_words, {max_words} tokens, "
        "and only their beginning is read."
    )
