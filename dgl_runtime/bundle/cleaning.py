"""Text normalisation before tokenization: each model's own, by the name that its manifest gives.

The rules are the published ones. Ours differ from BLIP's in one step that changes nothing: BLIP also cuts
a text at 40 or 50 words, of which its 35 tokens never reach the last.
"""

import html
import re
import string
from collections.abc import Callable, Mapping

_BLIP_SPACES = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_NO_PUNCTUATION = str.maketrans({"_": " "} | dict.fromkeys(set(string.punctuation) - {"_"}))


def clean(text: str, way: str) -> str:
    """Clean a text in one of ``CLEANINGS``."""
    return _WAYS[way](text)


def _mended(text: str) -> str:
    """Broken unicode is mended, HTML entities are resolved twice."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _one_space(text: str) -> str:
    return " ".join(text.split())


def _whitespace(text: str) -> str:
    return _one_space(_mended(text))


def _clip(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    """Lower case without punctuation; an underscore is a space."""
    return _one_space(_mended(text).translate(_NO_PUNCTUATION).lower())


def _blip(text: str) -> str:
    """Lower case, some punctuation is a space; other marks and single line breaks stay."""
    # Half a pair of surrogates, which no file can hold, becomes the sign for what is unknown.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    spaced = whole.lower().translate(_BLIP_SPACES)
    return re.sub(r"\s{2,}", " ", spaced).rstrip("\n").strip(" ")


_WAYS: Mapping[str, Callable[[str], str]] = {
    "clip": _clip,
    "canonicalize": _canonicalize,
    "blip": _blip,
    "whitespace": _whitespace,
}
CLEANINGS = tuple(_WAYS)
