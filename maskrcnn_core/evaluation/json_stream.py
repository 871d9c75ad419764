"""A large JSON document read entry by entry, so that no process holds all of it.

Annotation files and result files are one JSON value of millions of entries. Only a piece of text of some megabytes is
in memory at a time, and the entry that is just being read.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from maskrcnn_core.errors import AnnotationError

_CHUNK_BYTES = 1 << 22
_SPACE = " \t\n\r"
_AFTER_NUMBER = _SPACE + ",]}"


@dataclass(frozen=True)
class Entry:
    """An element of a list, or the value of a key that is no list.

    Attributes:
        key: key of the document's object that the list stands under; empty where the document itself is a list.
        value: the element; [] for an empty list.
        text: its JSON.
    """

    key: str
    value: Any
    text: str


def stream_entries(read: Callable[[int], bytes]) -> Iterator[Entry]:
    """The elements of a JSON list, or of every list that an object holds at its first level.

    Args:
        read: returns the next bytes of UTF-8 text, at most as many as asked for; none at the end.

    Yields:
        Every element in the order of the file. A value that is no list comes as one entry, an empty list too.

    Raises:
        AnnotationError: the text is no JSON list or object; says where.
    """
    text = _Text(read)
    start = text.peek()
    if start == "[":
        yield from _elements(text, "")
    elif start == "{":
        yield from _members(text)
    else:
        raise text.error("expected a JSON list or object")
    if text.peek():
        raise text.error("text after the end of the document")


def _members(text: "_Text") -> Iterator[Entry]:
    text.expect("{")
    if text.peek() == "}":
        text.expect("}")
        return
    while True:
        key, _ = text.value()
        text.expect(":")
        if text.peek() == "[":
            yield from _elements(text, str(key))
        else:
            value, raw = text.value()
            yield Entry(str(key), value, raw)
        if text.peek() == "}":
            text.expect("}")
            return
        text.expect(",")


def _elements(text: "_Text", key: str) -> Iterator[Entry]:
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        yield Entry(key, [], "[]")
        return
    while True:
        value, raw = text.value()
        yield Entry(key, value, raw)
        if text.peek() == "]":
            text.expect("]")
            return
        text.expect(",")


class _Text:
    """Text that is read as it is needed and forgotten as it is used."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._held = ""
        self._place = 0
        self._before = 0  # characters that are forgotten
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space, not used yet; empty at the end."""
        while True:
            while self._place < len(self._held) and self._held[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._held):
                return self._held[self._place]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Use one character.

        Raises:
            AnnotationError: another one stands there.
        """
        if self.peek() != character:
            raise self.error(f"expected {character!r}")
        self._place += 1

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._held, self._place)
            except ValueError as error:
                if not self._more():
                    raise self.error(str(error).split(":")[0]) from error
                continue
            # A number may go on in what is not read yet; everything else ends with its last character.
            ends = end < len(self._held) and self._held[end] in _AFTER_NUMBER
            if not ends and self._held[end - 1] not in '"}]' and self._more():
                continue
            raw = self._held[self._place : end]
            self._place = end
            return value, raw

    def error(self, what: str) -> AnnotationError:
        """The error of a document that is not JSON here."""
        return AnnotationError(f"not JSON ({what} at character {self._before + self._place})")

    def _more(self) -> bool:
        """Read on; false at the end."""
        if self._ended:
            return False
        content = self._read(max(_CHUNK_BYTES, len(self._held) - self._place))
        self._ended = not content
        try:
            text = self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.error("no UTF-8 text") from error
        self._before += self._place
        self._held = self._held[self._place :] + text
        self._place = 0
        return True
