"""Every kind of tokenizer makes the ids of its own library of 20,000 random and 200 natural strings.

CLIP's vocabulary is the published one. The others (BERT's WordPiece, T5's Unigram, Gemma's BPE) need a
download, so small ones of their kind are trained here.
"""

import itertools
import json
import random
import unicodedata

import numpy as np
import open_clip
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from dgl_runtime.bundle.cleaning import clean
from dgl_train.model.backbones.blip import word_pieces
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from dgl_train.model.backbones.open_clip_inputs import tokenizer_of
from tests import ROOT
from tests.train.data.test_vocabulary import ODD, is_old

pytestmark = pytest.mark.slow

NUM_RANDOM, NUM_NATURAL = 20_000, 200
LENGTH = 64


@pytest.fixture(scope="module")
def natural():
    """Sentences of the documents, and those of many scripts."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    lines = itertools.chain(*(page.read_text(encoding="utf-8").splitlines() for page in pages))
    sentences = [line for line in lines if line[:1].isalpha() and line.isascii()]
    whole = [text for text in ODD.values() if is_plain(text)]
    found = [*whole, *sentences[: NUM_NATURAL - len(whole)]]
    assert len(found) == NUM_NATURAL
    return found


@pytest.fixture(scope="module")
def texts(natural):
    """All strings: words, signs and letters of every script, glued and apart.

    No special token is written out: which of them our CLIP tells apart is in test_vocabulary.
    """
    made = random.Random(0)
    codes = made.sample(range(32, 0x2FA1E), 20_000)
    letters = [letter for letter in map(chr, codes) if is_old(letter) and is_plain(letter)]
    words = {word for text in natural for word in text.split() if len(word) < 20}
    words = sorted(word for word in words if "_of_text" not in word.lower())
    kinds = ([chr(code) for code in range(32, 127)], words, letters, [" "])
    parts = [[made.choice(made.choice(kinds)) for _ in range(7)] for _ in range(NUM_RANDOM)]
    return [*natural, *map("".join, parts)]


def is_plain(text):
    """Whether a file can hold it."""
    return all(unicodedata.category(letter) not in ("Cs", "Co") for letter in text)


def assert_same(texts, found, expected):
    """Rows of ids, ours as long as they are, theirs with padding."""
    assert len(found) == len(expected) == len(texts) > 0.95 * (NUM_RANDOM + NUM_NATURAL)
    differing = [
        (text, ours[:9], theirs[:9])
        for text, ours, theirs in zip(texts, found, expected, strict=True)
        if ours != theirs
    ]
    assert not differing, (len(differing), differing[:3])


def test_clip(texts):
    old = [text for text in texts if all(map(is_old, clean(text, "clip")))]
    theirs = open_clip.tokenizer.SimpleTokenizer()(old, 77).tolist()
    ours = clip_tokenizer(77)(old).ids
    ours = np.pad(ours, ((0, 0), (0, 77 - ours.shape[1]))).tolist()
    assert_same(old, ours, theirs)


def test_word_pieces(texts, natural, tmp_path):
    """transformers' BERT, in Rust, and its first one, in Python."""
    from transformers import BertTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special)
    inner.train_from_iterator(natural, trainer)
    vocabulary = inner.get_vocab()
    path = tmp_path / "vocab.txt"
    lines = [f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)]
    path.write_text("".join(lines), encoding="utf-8")
    cleaned = [clean(text, "blip") for text in texts]
    rows = word_pieces(path).encode_batch(cleaned, add_special_tokens=False)
    ours = [[2, *row.ids[:33], 3] for row in rows]
    cut = {"truncation": True, "max_length": 35}
    assert_same(texts, ours, BertTokenizer(str(path))(cleaned, **cut)["input_ids"])
    python = BertTokenizerLegacy(str(path))(cleaned, **cut)["input_ids"]
    assert_same(texts, ours, python)


def through_open_clip(folder, text_cfg, texts):
    """What open_clip, by transformers, makes of texts with a folder's tokenizer, and what we make of them."""
    more = text_cfg["tokenizer_kwargs"]
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=LENGTH, **more)
    ours = tokenizer_of(text_cfg, lambda file: folder / file if (folder / file).is_file() else None)
    assert ours.spec.pad_to == LENGTH
    return ours(texts).ids.tolist(), theirs(texts).tolist()


def test_unigrams(texts, natural, tmp_path):
    """As SigLIP has them."""
    from transformers import T5Tokenizer

    inner = tokenizers.Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(natural, trainer)
    pieces = json.loads(inner.to_str())["model"]["vocab"]
    T5Tokenizer(vocab=[tuple(piece) for piece in pieces], extra_ids=0).save_pretrained(tmp_path)
    text_cfg = {
        "hf_tokenizer_name": "t5", "context_length": LENGTH, "no_causal_mask": True,
        "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    assert_same(texts, *through_open_clip(tmp_path, text_cfg, texts))


def test_byte_pairs_of_gemma(texts, natural, tmp_path):
    """As SigLIP 2 has them: what no piece holds is spelled in bytes."""
    from transformers import GemmaTokenizer

    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "\u2581")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    inner.train_from_iterator([text for text in natural if text.isascii()], trainer)
    model = json.loads(inner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    gemma = GemmaTokenizer(
        vocab=model["vocab"],
        merges=merges,
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    )
    gemma.save_pretrained(tmp_path)
    text_cfg = {
        "hf_tokenizer_name": "gemma", "context_length": LENGTH, "no_causal_mask": True,
        "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # fmt: skip
    assert_same(texts, *through_open_clip(tmp_path, text_cfg, texts))
