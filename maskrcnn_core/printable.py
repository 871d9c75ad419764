"""Text that came from outside, made fit for a terminal or a log: names of files, categories and keys, quoted errors.

A name may hold anything that a file system or a JSON file lets it hold: a line end that forges a line, an escape that
moves the cursor or sets the window's title, marks that turn the direction of writing, halves of characters that no
stream can encode.
"""

import unicodedata
from collections.abc import Sequence

# Control characters, marks that are not seen (direction, joiners), lone surrogates, what Unicode has not assigned, and
# the two separators that end a line.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})

_MAX_LISTED, _MAX_LENGTH = 8, 200


def printable(text: str) -> str:
    r"""The same text with every character that a terminal would obey, or that no stream can hold, as its escape.

    Backslashes stay as they are: the text is for reading, not for reading back.

    >>> printable("a\n\x1b[2Jb.jpg")
    'a\\n\\x1b[2Jb.jpg'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if unicodedata.category(one) in _UNSEEN else one for one in text)


def listed(names: Sequence[str]) -> str:
    """The first of the names, fit for a terminal, and how many more there are."""
    rest = len(names) - _MAX_LISTED
    shown = (printable(name)[:_MAX_LENGTH] for name in names[:_MAX_LISTED])
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")
