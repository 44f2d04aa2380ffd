"""Texts -> int32 token ids: a ``tokenizer.json`` of the `tokenizers` library, fed as a TextSpec says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.bundle.cleaning import clean
from dgl_runtime.bundle.input_spec import TextSpec
from dgl_runtime.errors import BundleError

if TYPE_CHECKING:
    import tokenizers

_LETTERS, _LAST_WORDS = 40, 4  # of a long text, that are repeated


@dataclass(frozen=True)
class Tokens:
    """Texts as rows of token ids.

    Attributes:
        ids: int32 [B, L]; a row is padded to the longest, or to the length that all rows have.
        lengths: int64 [B]; how long each row is where it comes alone. Padding counts where all rows have
            one length, because such a text encoder attends to it.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Tokens":
        """Some rows, no longer than the longest of them."""
        lengths = self.lengths[rows]
        return Tokens(self.ids[rows, : int(lengths.max(initial=0))], lengths)


class Tokenizer:
    """Texts to token ids, as a model was trained on them."""

    def __init__(self, inner: "tokenizers.Tokenizer", spec: TextSpec) -> None:
        """Take a vocabulary and how it is used.

        Raises:
            BundleError: The vocabulary lacks an id that the spec names.
        """
        size = inner.get_vocab_size()
        for name in ("pad_id", "start_id", "end_id"):
            if (number := getattr(spec, name)) is not None and number >= size:
                raise BundleError(
                    f"{name} is {number}, but the tokenizer's ids end at {size - 1}. "
                    "Export the bundle again."
                )
        inner.no_padding()  # a file may ask for its own
        inner.no_truncation()
        self._inner, self.spec = inner, spec

    @classmethod
    def load(cls, path: Path, spec: TextSpec) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            BundleError: Missing, damaged, or it does not fit the spec.
        """
        try:
            inner = read_exactly(path)
        except ImportError:
            raise  # the library is missing; the file may be well
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a readable tokenizer: {error}") from error
        return cls(inner, spec)

    def fed_as(self, spec: TextSpec) -> "Tokenizer":
        """The same vocabulary, used in another way."""
        return Tokenizer(self._inner, spec)

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json`` that ``load`` reads."""
        path.write_text(self._inner.to_str(pretty=True), encoding="utf-8")

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts: start token, at most ``most_pieces`` of the text, end token, padding.

        Args:
            texts: Any strings; of an empty one start and end token are left.
        """
        spec = self.spec
        start, end = ([] if one is None else [one] for one in (spec.start_id, spec.end_id))
        rows = [[*start, *one.ids[: spec.most_pieces], *end] for one in self._encode(texts)]
        lengths = np.array([spec.pad_to or len(row) for row in rows], dtype=np.int64)
        shape = len(rows), int(lengths.max(initial=0))
        ids = np.full(shape, spec.pad_id, dtype=np.int32)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        return Tokens(ids, lengths)

    def tell_cut(self, text: str) -> str | None:
        """What of a text is read, in words, if it is longer than that; None: all of it."""
        cleaned = clean(text, self.spec.clean)
        (encoded,) = self._encode([text])
        pieces, most = len(encoded.ids), self.spec.most_pieces
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

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of some texts are longer than what is read of them."""
        return sum(len(one.ids) > self.spec.most_pieces for one in self._encode(texts))

    def _encode(self, texts: Sequence[str]) -> "list[tokenizers.Encoding]":
        cleaned = [clean(text, self.spec.clean) for text in texts]
        return self._inner.encode_batch(cleaned, add_special_tokens=False)


def read_exactly(path: Path) -> "tokenizers.Tokenizer":
    """Read a ``tokenizer.json``, every score of a Unigram vocabulary to its last bit.

    The library rounds one score in eight by its last bit as it reads them. Of two ways to cut a word whose
    scores sum to the same, another one may then win.

    Raises:
        Exception: The library cannot read it, and says why.
    """
    import tokenizers

    content = path.read_text(encoding="utf-8")
    inner = tokenizers.Tokenizer.from_str(content)
    if isinstance(inner.model, tokenizers.models.Unigram):
        model = json.loads(content)["model"]
        pieces = [(piece, score) for piece, score in model["vocab"]]
        inner.model = tokenizers.models.Unigram(
            pieces, model.get("unk_id"), model.get("byte_fallback", False)
        )
    return inner


def _shortened(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}..."
