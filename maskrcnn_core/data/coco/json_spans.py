"""Where the entries of a large JSON document lie, found by its brackets alone: a list is cut into pieces that can be
parsed one by one, anywhere, and nothing is parsed to find them.

A bracket counts outside of strings only; UTF-8 never uses the bytes of brackets and quotes for anything else. Whether
the document is JSON is not known from its brackets. But it is if the members of its object and all pieces of its
lists are, which is what whoever parses them sees.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.coco.json_stream import LONGEST_ENTRY

PIECE_BYTES = 1 << 22
"""Of one piece, about: what is parsed at once."""

_BLOCK_BYTES = 1 << 23
_LONGEST_MEMBER = 1 << 16  # text of keys and plain values between two lists or objects
_LONGEST_VALUE = 1 << 22  # of an object at the first level
_QUOTE, _BACKSLASH, _OPEN = ord('"'), ord("\\"), ord("[")
_BRACE_BIT = 0x20  # that turns [ and ] to { and }
_UTF8_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\n\r"
_IS_EVENT = np.zeros(256, np.bool_)
_IS_EVENT[[ord(one) for one in '[]{}"']] = True


class NoSpans(ValueError):
    """The document has another form than spans are found in: it is read as a whole."""


@dataclass
class ListSpan:
    """A list at the first level of an object.

    Attributes:
        pieces: begin and end of neighbouring entries, in bytes, the commas between pieces left out.
    """

    pieces: list[tuple[int, int]] = field(default_factory=list)


def list_spans(content: Any) -> dict[str, ListSpan | None]:
    """The lists of a JSON object, by key, in the order of the file; None for a value that is no list.

    Args:
        content: UTF-8 text: bytes, or what is sliced to bytes and has a length (a file).

    Raises:
        NoSpans: it is not UTF-8, no object, or has a key twice; or it is no JSON at all.
    """
    start = 3 if content[:3] == _UTF8_MARK else 0
    first = content[start : start + 4]
    if b"\0" in first or first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise NoSpans
    return _Spans(content, start).read()


def parse_piece(content: Any, piece: tuple[int, int]) -> list[Any]:
    """The entries of a piece.

    Raises:
        NoSpans: it is no JSON.
    """
    try:
        entries: list[Any] = json.loads(b"[%b]" % content[piece[0] : piece[1]])
    except (ValueError, RecursionError):
        raise NoSpans from None
    return entries


class _Spans:
    """One reading of a document."""

    def __init__(self, content: Any, start: int) -> None:
        self._content, self._start = content, start
        self._found: dict[str, ListSpan | None] = {}
        self._open: ListSpan | None = None
        self._after = start  # of the last value at the first level, or of the last piece in a list
        self._level_one = False

    def read(self) -> dict[str, ListSpan | None]:
        depth = 0
        for positions, depths, steps in self._brackets():
            depth = int(depths[-1]) if len(depths) else depth
            if len(depths) and depths.min() < 0:
                raise NoSpans
            chosen = depths <= 2  # the document's braces, the values in it, and the ends of a list's entries
            for position, after, step in zip(
                positions[chosen].tolist(), depths[chosen].tolist(), steps[chosen].tolist(), strict=True
            ):
                self._event(position, after, step)
        if depth != 0 or not self._level_one or self._text(self._after, len(self._content)).strip(_SPACE):
            raise NoSpans
        return self._found

    def _event(self, position: int, after: int, step: int) -> None:
        """A bracket after which the depth is `after`."""
        if step > 0 and after == 1:
            self._begin_document(position)
        elif step > 0 and after == 2:
            self._begin_value(position)
        elif step < 0 and after == 2 and self._open is not None:
            if position + 1 - self._after >= PIECE_BYTES:
                self._cut(position + 1)
        elif step < 0 and after == 1:
            self._end_value(position)
        elif step < 0 and after == 0:
            self._require(position, b"}")
            self._members(self._text(self._after, position), last=True)
            self._after = position + 1

    def _begin_document(self, position: int) -> None:
        self._require(position, b"{")
        if self._level_one or self._text(self._start, position).strip(_SPACE):
            raise NoSpans
        self._level_one = True
        self._after = position + 1

    def _begin_value(self, position: int) -> None:
        key = self._members(self._text(self._after, position), last=False)
        is_list = self._content[position : position + 1] == b"["
        self._open = ListSpan() if is_list else None
        self._found[key] = self._open
        self._after = position + 1 if is_list else position

    def _end_value(self, position: int) -> None:
        if self._open is None:
            try:
                json.loads(self._text(self._after, position + 1, most=_LONGEST_VALUE))
            except (ValueError, RecursionError):
                raise NoSpans from None
        else:
            self._require(position, b"]")
            if self._open.pieces:
                if position - self._after > _LONGEST_MEMBER or self._text(self._after, position).strip(_SPACE):
                    self._cut(position)
            elif position > self._after:
                self._add(self._after, position)
            self._open = None
        self._after = position + 1

    def _cut(self, end: int) -> None:
        """Everything since the last piece is one, without the comma before it."""
        assert self._open is not None
        begin = self._after
        if self._open.pieces:
            window = self._text(begin, min(end, begin + _LONGEST_MEMBER))
            stripped = window.lstrip(_SPACE)
            if not stripped.startswith(b","):
                raise NoSpans
            begin += len(window) - len(stripped) + 1
        self._add(begin, end)
        self._after = end

    def _add(self, begin: int, end: int) -> None:
        assert self._open is not None
        if end - begin > LONGEST_ENTRY:
            raise NoSpans
        self._open.pieces.append((begin, end))

    def _require(self, position: int, bracket: bytes) -> None:
        if self._content[position : position + 1] != bracket:
            raise NoSpans

    def _members(self, text: bytes, *, last: bool) -> str:
        """Keys and plain values between two values; returns the key that the next value stands under."""
        lead = text.lstrip(_SPACE)
        if self._found:
            if not lead.startswith(b",") and not (last and not lead):
                raise NoSpans
            lead = lead[1:]
            if last and self._ends_with_comma(text):
                raise NoSpans
        try:
            pairs = json.loads(b"{%b}" % (lead if last else lead + b"null"), object_pairs_hook=list)
        except (ValueError, RecursionError):
            raise NoSpans from None
        if not last and not pairs:
            raise NoSpans
        for key, _ in pairs:
            if key in self._found:
                raise NoSpans
            self._found[key] = None
        return "" if last else pairs[-1][0]

    @staticmethod
    def _ends_with_comma(text: bytes) -> bool:
        return text.rstrip(_SPACE).endswith(b",")

    def _text(self, begin: int, end: int, most: int = _LONGEST_MEMBER) -> bytes:
        if end - begin > most:
            raise NoSpans
        return bytes(self._content[begin:end])

    def _brackets(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """By block: positions of the brackets outside of strings, the depth after each, and its step (1 or -1)."""
        is_inside, depth, is_escaped = False, 0, False
        size = len(self._content)
        for begin in range(self._start, size, _BLOCK_BYTES):
            block = np.frombuffer(self._content[begin : begin + _BLOCK_BYTES], np.uint8)
            events = np.flatnonzero(_IS_EVENT[block])
            codes = block[events]
            escaped, is_escaped = _escaped(block, is_escaped)
            is_quote = codes == _QUOTE
            if len(escaped):
                is_quote &= ~np.isin(events, escaped)
            inside = (np.cumsum(is_quote) + is_inside) % 2 == 1
            if len(inside):
                is_inside = bool(inside[-1])
            is_bracket = ~inside & (codes != _QUOTE)
            steps = np.where((codes[is_bracket] | _BRACE_BIT) == (_OPEN | _BRACE_BIT), 1, -1)
            depths = depth + np.cumsum(steps)
            if len(depths):
                depth = int(depths[-1])
            yield begin + events[is_bracket], depths, steps
        if is_inside:
            raise NoSpans


def _escaped(block: NDArray[np.uint8], is_escaped: bool) -> tuple[NDArray[np.int64], bool]:
    """Positions of the characters that a backslash escapes, and whether the block's last one escapes the next."""
    slashes = np.flatnonzero(block == _BACKSLASH)
    if is_escaped:  # the first character is one of them; if it is a backslash, it escapes nothing
        slashes = slashes[1:] if len(slashes) and slashes[0] == 0 else slashes
    # In a row of backslashes every second one is escaped itself.
    first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
    rank = np.arange(len(slashes)) - np.repeat(first, np.diff(first, append=len(slashes)))
    escaped = slashes[rank % 2 == 0] + 1
    ends = bool(len(escaped)) and int(escaped[-1]) == len(block)
    escaped = escaped[:-1] if ends else escaped
    return np.concatenate([np.zeros(int(is_escaped), np.int64), escaped]), ends
