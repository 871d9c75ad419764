"""Google's protocol buffers as text, as Caffe describes networks (.prototxt): `name: value` and `name { ... }`.

Nothing is known of the fields' types, so that a value stays the text that it is. See
protobuf.dev/reference/protobuf/textformat-spec; lists in brackets and texts in several pieces, which Caffe's files do
not have, are refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable

_MAX_BYTES = 1 << 21
_MAX_DEPTH = 16
_TOKEN = re.compile(r"""\s+|\#[^\n]*|(?P<text>"[^"\n]*"|'[^'\n]*')|(?P<mark>[{}:;,])|(?P<word>[^\s{}:;,"'#\[\]<>]+)""")


@dataclass(frozen=True)
class TextMessage:
    """A message.

    Attributes:
        fields: by name what is written under it, in the file's order: texts without their quotes, or messages.
        line: where it begins, counted from 1.
    """

    fields: Mapping[str, tuple["str | TextMessage", ...]]
    line: int

    def texts(self, name: str) -> tuple[str, ...]:
        """All plain values of a field."""
        return tuple(value for value in self.fields.get(name, ()) if isinstance(value, str))

    def text(self, name: str, default: str = "") -> str:
        """The last plain value of a field, which counts where one is expected."""
        return (default, *self.texts(name))[-1]

    def messages(self, name: str) -> tuple["TextMessage", ...]:
        """All messages of a field."""
        return tuple(value for value in self.fields.get(name, ()) if isinstance(value, TextMessage))

    def message(self, name: str) -> "TextMessage":
        """The last message of a field; an empty one where there is none."""
        return (TextMessage({}, self.line), *self.messages(name))[-1]

    def numbers(self, name: str) -> tuple[float, ...]:
        """All values of a field that holds numbers.

        Raises:
            CheckpointError: one is no finite number, or out of all proportion.
        """
        return tuple(self._number(name, text) for text in self.texts(name))

    def number(self, name: str, default: float) -> float:
        """The last value of a field that holds a number.

        Raises:
            CheckpointError: it is none.
        """
        return (default, *self.numbers(name))[-1]

    def whole(self, name: str, default: int) -> int:
        """The last value of a field that holds a whole number.

        Raises:
            CheckpointError: it is none.
        """
        value = self.number(name, default)
        if value != int(value):
            raise CheckpointError(f"line {self.line}: {name}: {value:g}, expected a whole number")
        return int(value)

    def _number(self, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("inf")
        if not abs(value) < 1e9:
            raise CheckpointError(f"line {self.line}: {name}: {printable(text)[:40]}, expected a number")
        return value


def read_prototxt(path: Path | str) -> TextMessage:
    """The message of a file.

    Raises:
        CheckpointError: the file is missing, or no such text.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file, expected Caffe's description of a network (.prototxt)")
    if file.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: it has more than {_MAX_BYTES:,} bytes, as no description of a network has")
    try:
        return parse_prototxt(file.read_text(encoding="utf-8", errors="replace"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_prototxt(text: str) -> TextMessage:
    """The message of a text.

    Raises:
        CheckpointError: it is none.
    """
    tokens = _tokens(text)
    open_messages: list[tuple[str, dict[str, list[str | TextMessage]], int]] = [("", {}, 1)]
    name = ""
    for line, kind, token in tokens:
        _, fields, _ = open_messages[-1]
        if kind == "mark" and token in ":;,":
            if token == ":" and not name:
                raise CheckpointError(f"line {line}: a colon without a name before it")
        elif token == "{" and kind == "mark":
            if not name or len(open_messages) > _MAX_DEPTH:
                raise CheckpointError(f"line {line}: a bracket without a name before it, or too many within each other")
            open_messages.append((name, {}, line))
            name = ""
        elif token == "}" and kind == "mark":
            if name or len(open_messages) == 1:
                raise CheckpointError(f"line {line}: a closing bracket where a value or a name is expected")
            closed, inner, start = open_messages.pop()
            message = TextMessage({key: tuple(values) for key, values in inner.items()}, start)
            open_messages[-1][1].setdefault(closed, []).append(message)
        elif not name:
            if kind != "word":
                raise CheckpointError(f"line {line}: {printable(token)[:40]}, expected the name of a field")
            name = token
        else:
            fields.setdefault(name, []).append(token[1:-1] if kind == "text" else token)
            name = ""
    if name or len(open_messages) > 1:
        raise CheckpointError(f"it ends within the message of line {open_messages[-1][2]}")
    return TextMessage({key: tuple(values) for key, values in open_messages[0][1].items()}, 1)


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each token."""
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CheckpointError(f"line {line}: {printable(text[position : position + 20])!r}, expected name: value")
        if match.lastgroup is not None:
            yield line, match.lastgroup, match[0]
        line += match[0].count("\n")
        position = match.end()
