"""CLIP's vocabulary, out of the file that open_clip ships."""

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from dgl_runtime.bundle.input_spec import clip_texts
from dgl_runtime.bundle.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

START, END = "<start_of_text>", "<end_of_text>"
CONTEXT = 77  # tokens of the longest text that published CLIPs read
# CLIP's word pattern; special tokens written out in a text are found before it applies.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The file holds more merges than CLIP uses: 49,152 pieces less 256 bytes less 2 special tokens.
_MERGES = 49152 - 256 - 2


def clip_tokenizer(max_tokens: int = CONTEXT) -> Tokenizer:
    """What every CLIP reads texts with; a model's own is ``model.tokenizer``."""
    return Tokenizer(_vocabulary(), clip_texts(max_tokens))


@cache
def _vocabulary() -> "tokenizers.Tokenizer":
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _MERGES + 1]
    return _byte_pairs([(first, second) for first, second in map(str.split, lines)])


def _byte_pairs(merges: Sequence[tuple[str, str]]) -> "tokenizers.Tokenizer":
    """The vocabulary of a list of byte-pair merges, most frequent first."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    letters = _byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += ["".join(merge) for merge in merges]
    pieces += [START, END]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix="</w>")
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([START, END])
    return inner


def _byte_letters() -> list[str]:
    """One printable letter for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
