"""CLIP's byte-pair tokenizer over the `tokenizers` library: texts -> int32 token ids."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.errors import BundleError

if TYPE_CHECKING:
    import tokenizers

START, END = "<start_of_text>", "<end_of_text>"
# CLIP's word pattern; special tokens written out in a text are found before it applies.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_LETTERS, _LAST_WORDS = 40, 4  # of a long text, that are repeated


class Tokenizer:
    """Texts to token ids, as CLIP was trained on them."""

    def __init__(self, inner: "tokenizers.Tokenizer") -> None:
        self._inner = inner
        start, end = inner.token_to_id(START), inner.token_to_id(END)
        if start is None or end is None:
            raise BundleError(f"the tokenizer lacks CLIP's special tokens {START} and {END}.")
        self.start_id, self.end_id = start, end

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            BundleError: Missing or damaged.
        """
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a readable tokenizer: {error}") from error
        return cls(inner)

    @classmethod
    def from_merges(cls, merges: Sequence[tuple[str, str]]) -> "Tokenizer":
        """Build the tokenizer from CLIP's list of byte-pair merges, most frequent first."""
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
        return cls(inner)

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json`` that ``load`` reads."""
        path.write_text(self._inner.to_str(pretty=True), encoding="utf-8")

    def __call__(self, texts: Sequence[str], max_words: int) -> NDArray[np.int32]:
        """Tokenize texts: start token, at most ``max_words - 2`` pieces, end token, zero padding.

        Args:
            texts: Any strings; empty ones become start and end token.
            max_words: The longest row, start and end token included.

        Returns:
            int32 [B, L], L the longest row of this batch.
        """
        encoded = self._encode([clean(text) for text in texts])
        rows = [[self.start_id, *one.ids[: max_words - 2], self.end_id] for one in encoded]
        tokens = np.zeros((len(rows), max(map(len, rows), default=2)), dtype=np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens

    def tell_cut(self, text: str, max_words: int) -> str | None:
        """What of a text is read, in words, if it is longer than that; None: all of it."""
        cleaned = clean(text)
        (encoded,) = self._encode([cleaned])
        pieces, most = len(encoded.ids), max_words - 2
        if pieces <= most:
            return None
        end = encoded.offsets[most - 1][1]
        kept, rest = cleaned[:end], cleaned[end:]
        words = len(kept.split()) - (not rest.startswith(" "))  # the last may be cut itself
        tail = " ".join(kept.split()[-_LAST_WORDS:])[-_LETTERS:]
        return (
            f"{_shortened(text)!r} is too long for this model, which reads its first {words} of "
            f"{len(cleaned.split())} words ({most} of {pieces} tokens), up to {tail!r}. Say it in fewer words."
        )

    def count_cut(self, texts: Sequence[str], max_words: int) -> int:
        """How many of some texts are longer than what is read of them."""
        most = max_words - 2
        cleaned = map(clean, texts)
        long = [
            text for text in cleaned if len(text.encode("utf-8", "replace")) > most
        ]  # a byte or more each
        return sum(len(one.ids) > most for one in self._encode(long))

    def _encode(self, cleaned: list[str]) -> "list[tokenizers.Encoding]":
        return self._inner.encode_batch(cleaned, add_special_tokens=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}..."


def clean(text: str) -> str:
    """CLIP's cleaning: mend broken unicode, resolve HTML entities twice, one space, lower case."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


def _byte_letters() -> list[str]:
    """One printable letter for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
