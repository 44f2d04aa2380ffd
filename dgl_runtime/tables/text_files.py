"""Files of text as people save them: UTF-8, with or without a byte order mark; nothing else is guessed at."""

import codecs
import re
from pathlib import Path

from dgl_runtime.errors import TextError

BREAK = re.compile(r"\r\n|\n|\r")
"""What ends a line. Not what ``str.splitlines`` also takes, such as U+2028, which texts hold."""

_OTHER_FORMS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path) -> str:
    """Read a whole file; line breaks stay as they are.

    Raises:
        OSError: It cannot be read.
        TextError: It is not UTF-8, or holds a NUL.
    """
    content = path.read_bytes()
    for mark, form in _OTHER_FORMS.items():
        if content.startswith(mark):
            raise TextError(f"{path} is text in {form}, expected UTF-8. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = line_at(content[: error.start].decode("utf-8"))
        raise TextError(
            f"{path} line {line} is not text in UTF-8 (byte 0x{content[error.start]:02x}: "
            f"{error.reason}). Save it as plain text in UTF-8."
        ) from error
    if "\0" in text:
        raise TextError(
            f"{path} line {line_at(text[: text.index(chr(0))])} holds a NUL, which no text does. "
            "Save it as plain text in UTF-8."
        )
    return text.lstrip("\ufeff")


def line_at(before: str) -> int:
    """The number, from 1, of the line on which a text ends."""
    return 1 + len(BREAK.findall(before))


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1; as ``read_text``."""
    lines = enumerate(BREAK.split(read_text(path)), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def read_list(path: Path) -> list[str]:
    """The lines that are not blank, without white space around them; as ``read_text``."""
    return [line.strip() for _, line in numbered_lines(path)]


def is_text(text: str) -> bool:
    """Whether a text from JSON is one: no NUL, no half of a character (a lone surrogate)."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
