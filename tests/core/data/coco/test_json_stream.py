import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_core.data.coco import json_stream
from maskrcnn_core.data.coco.json_stream import Entry, stream_entries
from maskrcnn_core.errors import AnnotationError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read_in(content: bytes, size: int) -> list[Entry]:
    stream = io.BytesIO(content)
    return list(stream_entries(lambda _: stream.read(size)))


@given(
    document=st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | st.lists(VALUES, max_size=4),
    size=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
)
def test_entries_of_any_document_in_pieces_of_any_size(document: Any, size: int, indent: Any, plain: bool) -> None:
    entries = read_in(json.dumps(document, indent=indent, ensure_ascii=plain).encode(), size)
    lists = document if isinstance(document, dict) else {"": document}
    expected = [
        (key, element)
        for key, value in lists.items()
        for element in ((value or [[]]) if isinstance(value, list) else [value])
    ]
    assert [(entry.key, entry.value) for entry in entries] == expected
    assert [json.loads(entry.text) for entry in entries] == [value for _, value in expected]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "7",
        "nonsense",
        '{"a": [1, 2',
        '{"a": [1 2]}',
        '{"a" 1}',
        "[1] 2",
        "[{]",
        '{"a": nul}',
        '["\\u00"]',
        "[-]",
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_what_is_no_json_is_an_error(content: str, size: int) -> None:
    with pytest.raises(AnnotationError, match=r"^not JSON \(.*at character \d+\)$"):
        read_in(content.encode("latin-1"), size)


def test_a_mark_at_the_start_is_no_text() -> None:
    assert read_in(b"\xef\xbb\xbf[1]", 2) == [Entry("", 1, "1")]


class Endless:
    """A file of a faulty entry and as much behind it as anybody reads; counts what is read."""

    def __init__(self, start: bytes, more: bytes, size: int) -> None:
        self.start, self.more, self.left = start, more, size
        self.given = 0

    def read(self, size: int) -> bytes:
        content, self.start = self.start, b""
        if not content:
            size = min(size, self.left)
            self.left -= size
            content = (self.more * (size // len(self.more) + 1))[:size]
        self.given += len(content)
        return content


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (b'{"images": [{"id": 1, "width": tru, "x": 2}, ', "Expecting value at character 31"),
        (b'{"images": [{"id": 1 "width": 3}, ', "Expecting ',' delimiter at character 21"),
        (b'{"images": [{"id": 1, "width" 3}, ', "Expecting ':' delimiter at character 30"),
        (b'[{"id": "\\q"}, ', "Invalid \\\\escape.*at character 9"),
        (b"[" * 200_000, "lists or objects in one another, far deeper than any COCO file"),
        (b'[{"id": ' + b"1" * 5000 + b"}, ", "a number of thousands of digits"),
    ],
)
def test_a_fault_is_told_where_it_is_and_at_once(start: bytes, fault: str) -> None:
    file = Endless(start, b'{"id": 123456, "bbox": [1, 2, 3, 4]}, ', 1 << 26)
    with pytest.raises(AnnotationError, match=rf"^not JSON \({fault}\)$"):
        list(stream_entries(file.read))
    assert file.given < 1 << 23


@pytest.mark.parametrize(("start", "more"), [(b'[{"name": "', b"a"), (b'[{"a": [', b"1, "), (b'{"a": {"b": ', b"[[")])
def test_an_entry_without_end_has_a_limit(start: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "LONGEST_ENTRY", 1 << 20)
    file = Endless(start, more, 1 << 26)
    with pytest.raises(AnnotationError, match=r"an entry of more than 1 million characters|in one another, far deeper"):
        list(stream_entries(file.read))
    assert file.given < 1 << 24


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(encoding: str, size: int) -> None:
    content = '{"a": [{"name": "Straße 😀"}, 7]}'.encode(encoding)
    assert [entry.value for entry in read_in(content, size)] == [{"name": "Straße 😀"}, 7]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_bytes_of_another_encoding_are_named(size: int) -> None:
    content = '{"a": [{"name": "café"}]}'.encode("latin-1")
    with pytest.raises(AnnotationError, match=r"^not JSON \(byte 20 is no UTF-8 text; is it Latin-1 .*save it anew\)$"):
        read_in(content, size)
