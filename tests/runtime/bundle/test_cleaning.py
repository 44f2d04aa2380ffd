"""Cleaning of texts: the published rules, one text each, and texts that no rule may trip over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgl_runtime.bundle.cleaning import CLEANINGS, clean

ODD = "A Dog's  {life_style}\n(part #1): \u201cit&amp;amp;s\u201d, caf\u00c3\u00a9!"


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("whitespace", 'A Dog\'s {life_style} (part #1): "it&s", caf\u00e9!'),
        ("clip", 'a dog\'s {life_style} (part #1): "it&s", caf\u00e9!'),
        ("canonicalize", "a dogs life style part 1 its caf\u00e9"),
        ("blip", "a dog's {life_style} part 1 \u201cit&amp amp s\u201d, caf\u00e3\u00a9"),
    ],
)
def test_each_model_has_its_own_way(way, expected):
    assert clean(ODD, way) == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A Dog\n  JUMPS\t", "a dog jumps"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # with a "<" in it, ftfy itself resolves no entities
        ("\u201cdon\u2019t\u201d", '"don\'t"'),
    ],
)
def test_clip_mends_what_was_broken_on_the_way(text, same):
    assert clean(text, "clip") == same


@pytest.mark.parametrize("way", CLEANINGS)
def test_half_a_pair_of_surrogates_is_a_sign_that_is_unknown(way):
    assert clean("half \ud800 pair", way) == "half \ufffd pair"


@pytest.mark.parametrize("way", ["clip", "canonicalize", "blip"])
def test_every_letter_and_digit_of_a_text_stays(way):
    text = "abcdefghijklmnopqrstuvwxyz 0123456789"
    assert clean(text.upper(), way) == text


def test_blip_keeps_a_single_line_break_and_makes_several_one_space():
    assert clean("one\ntwo \n three\n", "blip") == "one\ntwo three"


@pytest.mark.parametrize("way", CLEANINGS)
@given(text=st.text(st.characters(), max_size=40))
def test_any_text_becomes_one_that_a_file_can_hold(way, text):
    clean(text, way).encode()
