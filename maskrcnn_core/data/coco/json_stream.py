"""A large JSON document read entry by entry, so that no process holds all of it.

Annotation files and result files are one JSON value of millions of entries. Only a piece of text of some megabytes is
in memory at a time, and the entry that is just being read. An entry may be cut by the end of the piece, and then more
is read; where the text is wrong before that, nothing more can mend it, and the error says where. So a fault costs no
more memory than an entry, and no entry may be larger than `LONGEST_ENTRY`.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from maskrcnn_core.data.coco.json_text import encoding_of, json_fault, not_text
from maskrcnn_core.errors import AnnotationError

LONGEST_ENTRY = 1 << 27
"""Characters of one entry: those of COCO have some hundred, a mask of ten million runs some ten million."""

_CHUNK_BYTES = 1 << 22
_MOST_BYTES = 1 << 26  # at once, while an entry goes on
_CUT = 16  # characters before the end in which json may see a fault because a word, number or escape goes on behind it
_BYTES_OF_ENCODING = 4  # which show it
_SPACE = " \t\n\r"
_AFTER_NUMBER = _SPACE + ",]}"


class Entry(NamedTuple):
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
        read: returns the next bytes of text in UTF-8, UTF-16 or UTF-32, at most as many as asked for; none at the end.

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
        self._decoder: codecs.IncrementalDecoder | None = None
        self._encoding = ""
        self._scan = json.JSONDecoder().raw_decode
        self._held = ""
        self._position = 0
        self._before = 0  # characters that are forgotten
        self._bytes = 0  # given to the decoder
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space, not used yet; empty at the end."""
        while True:
            while self._position < len(self._held) and self._held[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._held):
                return self._held[self._position]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Use one character.

        Raises:
            AnnotationError: another one stands there.
        """
        if self.peek() != character:
            raise self.error(f"expected {character!r}")
        self._position += 1

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._held, self._position)
            except (ValueError, RecursionError) as error:
                if not self._may_be_cut(error) or not self._more():
                    raise AnnotationError(f"not JSON ({json_fault(error, self._before)})") from None
                continue
            # A number may go on in what is not read yet; everything else ends with its last character.
            ends = end < len(self._held) and self._held[end] in _AFTER_NUMBER
            if not ends and self._held[end - 1] not in '"}]' and self._more():
                continue
            raw = self._held[self._position : end]
            self._position = end
            return value, raw

    def error(self, what: str) -> AnnotationError:
        """The error of a document that is not JSON here."""
        return AnnotationError(f"not JSON ({what} at character {self._before + self._position})")

    def _may_be_cut(self, error: ValueError | RecursionError) -> bool:
        """Whether the text that is held ends within the value, so that more of it may mend the fault."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        if len(self._held) - self._position > LONGEST_ENTRY:
            raise self.error(f"an entry of more than {LONGEST_ENTRY >> 20} million characters, beginning")
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._held) - _CUT

    def _decoded(self, content: bytes) -> str:
        if self._decoder is None:
            while 0 < len(content) < _BYTES_OF_ENCODING and (further := self._read(_CHUNK_BYTES)):
                content += further
            self._encoding = encoding_of(content)
            self._decoder = codecs.getincrementaldecoder(self._encoding)()
        try:
            return self._decoder.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            waiting = len(error.object) - len(content)  # of the piece before
            raise AnnotationError(not_text(self._encoding, self._bytes + error.start - waiting)) from None
        finally:
            self._bytes += len(content)

    def _more(self) -> bool:
        """Read on; false at the end."""
        if self._ended:
            return False
        content = self._read(min(max(_CHUNK_BYTES, len(self._held) - self._position), _MOST_BYTES))
        self._ended = not content
        text = self._decoded(content)
        self._before += self._position
        self._held = self._held[self._position :] + text
        self._position = 0
        return True
