import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgl_runtime.bundle.tokenizer import Tokenizer, clean
from dgl_runtime.errors import BundleError
from tests import ROOT

START, END = 49406, 49407
CASES = json.loads((ROOT / "tests/golden/cases.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer.load(bundle / "tokenizer.json")


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_research_code(tokenizer, name):
    expected = np.array(CASES[name]["token_ids"])
    tokens = tokenizer(CASES[name]["captions"], expected.shape[1])
    assert tokens.dtype == np.int32
    width = tokens.shape[1]
    np.testing.assert_array_equal(tokens, expected[:, :width])
    assert not expected[:, width:].any()


def test_a_text_stands_between_start_and_end(tokenizer):
    assert (tokenizer.start_id, tokenizer.end_id) == (START, END)
    np.testing.assert_array_equal(
        tokenizer(["a man is playing guitar on a stage"], 77),
        [[START, 320, 786, 533, 1629, 5084, 525, 320, 2170, END]],
    )


def test_empty_texts_are_start_and_end(tokenizer):
    np.testing.assert_array_equal(tokenizer(["", " \n "], 32), [[START, END]] * 2)


def test_no_texts_make_no_rows(tokenizer):
    tokens = tokenizer([], 32)
    assert len(tokens) == 0
    assert tokens.dtype == np.int32


@pytest.mark.parametrize("max_words", [2, 3, 5, 32, 77])
def test_long_texts_are_cut_and_keep_their_end(tokenizer, max_words):
    (row,) = tokenizer(["dog cat " * 100], max_words)
    (whole,) = tokenizer(["dog cat " * 100], 1000)
    assert len(row) == max_words
    np.testing.assert_array_equal(row[:-1], whole[: max_words - 1])
    assert row[-1] == END


@pytest.mark.parametrize(
    ("text", "max_words", "words", "tokens", "tail"),
    [
        ("a dog", 3, "1 of 2", "1 of 2", "a"),
        ("A  Dog JUMPS into the water", 5, "3 of 6", "3 of 6", "a dog jumps"),
        ("A  Dog JUMPS into the water", 7, "5 of 6", "5 of 6", "dog jumps into the"),
        ("zwölf Boxkämpfer", 5, "0 of 2", "3 of 9", "zwö"),
        ("dog, cat", 4, "1 of 2", "2 of 3", "dog,"),
        ("dog, cat", 3, "0 of 2", "1 of 3", "dog"),
        ("9" * 50, 47, "0 of 1", "45 of 50", "9" * 40),
    ],
)
def test_a_text_that_is_cut_is_told_with_what_is_kept(
    tokenizer, text, max_words, words, tokens, tail
):
    shown = text if len(text) < 40 else text[:40] + "..."
    assert tokenizer.tell_cut(text, max_words) == (
        f"{shown!r} is too long for this model, which reads its first {words} words ({tokens} tokens), "
        f"up to {tail!r}. Say it in fewer words."
    )
    assert tokenizer.count_cut([text, "", text], max_words) == 2
    most = int(tokens.split(" of ")[1])
    assert tokenizer.tell_cut(text, most + 2) is None
    assert tokenizer.count_cut([text], most + 2) == 0


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), max_words=st.integers(3, 20))
def test_what_is_told_is_what_is_cut(tokenizer, text, max_words):
    (row,), (whole,) = tokenizer([text], max_words), tokenizer([text], 1000)
    assert (tokenizer.tell_cut(text, max_words) is not None) == (len(row) < len(whole))
    assert tokenizer.count_cut([text], max_words) == (len(row) < len(whole))


def test_short_rows_are_padded_with_zeros_to_the_longest(tokenizer):
    tokens = tokenizer(["cooking", "a dog jumps", ""], 32)
    assert tokens.shape == (3, 5)
    np.testing.assert_array_equal(tokens[0, 2:], [END, 0, 0])
    np.testing.assert_array_equal(tokens[2], [START, END, 0, 0, 0])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A Dog\n  JUMPS\t", "a dog jumps"),
        ("caf\u00c3\u00a9", "café"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # with a "<" in it, ftfy itself resolves no entities
        ("\u201cdon\u2019t\u201d", '"don\'t"'),
        ("half \ud800 pair", "half \ufffd pair"),
    ],
)
def test_texts_are_cleaned_first(tokenizer, text, same):
    assert clean(text) == same
    np.testing.assert_array_equal(tokenizer([text], 32), tokenizer([same], 32))


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4), max_words=st.integers(2, 20))
def test_any_text_has_a_start_an_end_and_a_row_of_its_own(tokenizer, texts, max_words):
    tokens = tokenizer(texts, max_words)
    assert 2 <= tokens.shape[1] <= max_words
    for row, text in zip(tokens, texts, strict=True):
        (alone,) = tokenizer([text], max_words)
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()
        assert (alone[0], alone[-1]) == (START, END)


def test_a_saved_tokenizer_is_read_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = ["A dog, isn't it? 2021", "猫 😀", "<end_of_text>"]
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(again(texts, 32), tokenizer(texts, 32))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize("missing", ["<start_of_text>", "<end_of_text>"])
def test_a_tokenizer_without_clips_special_tokens_is_refused(missing):
    class Other:
        def token_to_id(self, token):
            return None if token == missing else 1

    with pytest.raises(BundleError, match=r"lacks CLIP's special tokens <start_of_text>"):
        Tokenizer(Other())
