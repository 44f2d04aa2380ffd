"""Our cleaning of texts against that of open_clip, text by text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from dgl_runtime.bundle.cleaning import clean

THEIRS = {"clip": "lower", "canonicalize": "canonicalize", "whitespace": "whitespace"}
words = st.sampled_from(
    ["A Dog", "don't", "snake_case", "&amp;lt;", "caf\u00c3\u00a9", "\u201cq\u201d", "#1:"]
)
pieces = st.one_of(words, st.text(max_size=8), st.sampled_from([" ", "\n", "\u00a0", "\u3000"]))


@pytest.mark.parametrize("way", THEIRS)
@settings(max_examples=200, deadline=None)
@given(text=st.lists(pieces, max_size=8).map("".join))
def test_texts_are_cleaned_as_in_open_clip(way, text):
    assert clean(text, way) == get_clean_fn(THEIRS[way])(text)
