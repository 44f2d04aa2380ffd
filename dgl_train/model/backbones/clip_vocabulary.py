"""CLIP's vocabulary, out of the file that open_clip ships."""

import gzip
from functools import cache
from importlib.resources import files

from dgl_runtime.bundle.tokenizer import Tokenizer

# The file holds more merges than CLIP uses: 49,152 pieces less 256 bytes less 2 special tokens.
_MERGES = 49152 - 256 - 2


@cache
def clip_tokenizer() -> Tokenizer:
    """What every CLIP reads texts with; a model's own is ``model.tokenizer``."""
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _MERGES + 1]
    return Tokenizer.from_merges([(first, second) for first, second in map(str.split, lines)])
