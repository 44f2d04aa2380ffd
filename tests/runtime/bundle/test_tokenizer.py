import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.errors import BundleError
from tests import ROOT
from tests.helpers.specs import text_spec

START, END = 49406, 49407
CASES = json.loads((ROOT / "tests/golden/cases.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer.load(bundle / "tokenizer.json", text_spec(32))


def ids(tokenizer, texts, max_tokens=32, **changes):
    return tokenizer.fed_as(text_spec(max_tokens, **changes))(texts).ids


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_research_code(tokenizer, name):
    expected = np.array(CASES[name]["token_ids"])
    tokens = ids(tokenizer, CASES[name]["captions"], expected.shape[1])
    assert tokens.dtype == np.int32
    width = tokens.shape[1]
    np.testing.assert_array_equal(tokens, expected[:, :width])
    assert not expected[:, width:].any()


def test_a_text_stands_between_start_and_end(tokenizer):
    np.testing.assert_array_equal(
        ids(tokenizer, ["a man is playing guitar on a stage"], 77),
        [[START, 320, 786, 533, 1629, 5084, 525, 320, 2170, END]],
    )


def test_empty_texts_are_start_and_end(tokenizer):
    np.testing.assert_array_equal(ids(tokenizer, ["", " \n "]), [[START, END]] * 2)


def test_no_texts_make_no_rows(tokenizer):
    tokens = tokenizer([])
    assert len(tokens) == 0
    assert tokens.ids.shape == tokens[:5].ids.shape == (0, 0)
    assert (tokens.ids.dtype, tokens.lengths.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("max_tokens", [2, 3, 5, 32, 77])
def test_long_texts_are_cut_and_keep_their_end(tokenizer, max_tokens):
    (row,) = ids(tokenizer, ["dog cat " * 100], max_tokens)
    (whole,) = ids(tokenizer, ["dog cat " * 100], 1000)
    assert len(row) == max_tokens
    np.testing.assert_array_equal(row[:-1], whole[: max_tokens - 1])
    assert row[-1] == END


@pytest.mark.parametrize(
    ("text", "max_tokens", "words", "tokens", "tail"),
    [
        ("a dog", 3, "1 of 2", "1 of 2", "a"),
        ("A  Dog JUMPS into the water", 5, "3 of 6", "3 of 6", "a dog jumps"),
        ("A  Dog JUMPS into the water", 7, "5 of 6", "5 of 6", "dog jumps into the"),
        ("zwölf Boxkämpfer", 5, "0 of 2", "3 of 9", "zwö"),
        ("dog, cat", 4, "1 of 2", "2 of 3", "dog,"),
        ("dog, cat", 3, "0 of 2", "1 of 3", "dog"),
        ("9" * 50, 47, "0 of 1", "45 of 50", "9" * 40),
        ("9" * 40, 37, "0 of 1", "35 of 40", "9" * 35),
    ],
)
def test_a_text_that_is_cut_is_told_with_what_is_kept(
    tokenizer, text, max_tokens, words, tokens, tail
):
    shown = text if len(text) <= 40 else text[:40] + "..."
    cut = tokenizer.fed_as(text_spec(max_tokens))
    assert cut.tell_cut(text) == (
        f"{shown!r} is too long for this model, which reads its first {words} words ({tokens} tokens), "
        f"up to {tail!r}. Say it in fewer words."
    )
    assert cut.count_cut([text, "", text]) == 2
    whole = tokenizer.fed_as(text_spec(int(tokens.split(" of ")[1]) + 2))
    assert whole.tell_cut(text) is None
    assert whole.count_cut([text]) == 0


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), max_tokens=st.integers(3, 20))
def test_what_is_told_is_what_is_cut(tokenizer, text, max_tokens):
    (row,), (whole,) = ids(tokenizer, [text], max_tokens), ids(tokenizer, [text], 1000)
    cut = tokenizer.fed_as(text_spec(max_tokens))
    assert (cut.tell_cut(text) is not None) == (len(row) < len(whole))
    assert cut.count_cut([text]) == (len(row) < len(whole))


def test_short_rows_are_padded_with_zeros_to_the_longest(tokenizer):
    tokens = tokenizer(["cooking", "a dog jumps", ""])
    assert tokens.ids.shape == (3, 5)
    np.testing.assert_array_equal(tokens.ids[0, 2:], [END, 0, 0])
    np.testing.assert_array_equal(tokens.ids[2], [START, END, 0, 0, 0])
    np.testing.assert_array_equal(tokens.lengths, [3, 5, 2])


def test_some_rows_are_as_long_as_the_longest_of_them(tokenizer):
    tokens = tokenizer(["cooking", "a dog jumps", ""])
    some = tokens[np.array([2, 0])]
    np.testing.assert_array_equal(some.ids, tokens.ids[[2, 0], :3])
    np.testing.assert_array_equal(some.lengths, [2, 3])


def test_rows_of_one_length_stay_that_long_because_their_padding_is_read(tokenizer):
    tokens = tokenizer.fed_as(text_spec(8, pad_id=7, pad_to=10))(["cooking", "dog cat " * 9])
    assert (tokens.ids.shape, tokens[:1].ids.shape) == ((2, 10), (1, 10))
    np.testing.assert_array_equal(tokens.ids[0, 3:], [7] * 7)
    np.testing.assert_array_equal(tokens.ids[1, 7:], [END, 7, 7])
    np.testing.assert_array_equal(tokens.lengths, [10, 10])


@pytest.mark.parametrize("start_id", [None, START])
@pytest.mark.parametrize("end_id", [None, END])
def test_a_start_and_an_end_stand_where_the_model_wants_them(tokenizer, start_id, end_id):
    spec = {"start_id": start_id, "end_id": end_id, "read": "last"}
    start, end = ([] if one is None else [one] for one in (start_id, end_id))
    (row,) = ids(tokenizer, ["a man is playing"], **spec)
    assert row.tolist() == [*start, 320, 786, 533, 1629, *end]
    (cut,) = ids(tokenizer, ["a man is playing"], 4, **spec)
    assert cut.tolist() == [*start, *row[len(start) : len(start) + 4 - len(start + end)], *end]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4), max_tokens=st.integers(2, 20))
def test_any_text_has_a_start_an_end_and_a_row_of_its_own(tokenizer, texts, max_tokens):
    tokens = tokenizer.fed_as(text_spec(max_tokens))(texts)
    assert 2 <= tokens.ids.shape[1] <= max_tokens
    for row, length, text in zip(tokens.ids, tokens.lengths, texts, strict=True):
        (alone,) = ids(tokenizer, [text], max_tokens)
        assert len(alone) == length
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()
        assert (alone[0], alone[-1]) == (START, END)


def test_a_saved_tokenizer_is_read_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = ["A dog, isn't it? 2021", "猫 😀", "<end_of_text>"]
    again = Tokenizer.load(tmp_path / "tokenizer.json", tokenizer.spec)
    np.testing.assert_array_equal(again(texts).ids, tokenizer(texts).ids)


def test_scores_of_a_saved_vocabulary_are_read_to_their_last_bit(tmp_path):
    """The library alone rounds one in eight."""
    scores = np.random.default_rng(0).uniform(-9, -1, 1000).tolist()
    pieces = [(chr(0x4E00 + number), score) for number, score in enumerate(scores)]
    whole = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    spec = text_spec(32, start_id=None, end_id=None)
    Tokenizer(whole, spec).save(tmp_path / "tokenizer.json")
    Tokenizer.load(tmp_path / "tokenizer.json", spec).save(tmp_path / "again.json")
    kept = json.loads((tmp_path / "again.json").read_text("utf-8"))["model"]["vocab"]
    assert kept == [list(piece) for piece in pieces]


def test_padding_and_cutting_that_a_file_asks_for_are_the_specs_to_decide(tokenizer, tmp_path):
    told = json.loads(tokenizer._inner.to_str())
    told["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    told["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 5, "pad_type_id": 0, "pad_token": "!"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    asked = Tokenizer.load(tmp_path / "tokenizer.json", tokenizer.spec)
    np.testing.assert_array_equal(
        asked(["a man is playing"]).ids, tokenizer(["a man is playing"]).ids
    )


def test_a_start_that_a_file_asks_for_is_the_specs_to_decide(tokenizer):
    inner = tokenizers.Tokenizer.from_str(tokenizer._inner.to_str())
    inner.post_processor = TemplateProcessing(single="! $A", special_tokens=[("!", 0)])
    assert inner.encode("a man").ids == [0, 320, 786]
    np.testing.assert_array_equal(
        Tokenizer(inner, tokenizer.spec)(["a man"]).ids, [[START, 320, 786, END]]
    )


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(path, text_spec())


@pytest.mark.parametrize("name", ["pad_id", "start_id", "end_id"])
def test_an_id_that_the_vocabulary_lacks_is_refused(tokenizer, name):
    assert tokenizer.fed_as(text_spec(**{name: END}))
    with pytest.raises(
        BundleError, match=rf"^{name} is 49408, but the tokenizer's ids end at 49407\."
    ):
        tokenizer.fed_as(text_spec(**{name: END + 1}))
