import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_core.data.coco import json_spans
from maskrcnn_core.data.coco.json_spans import ListSpan, NoSpans, list_spans, parse_piece

TEXT = st.sampled_from(["", "a", '"', "\\", '\\"', "[", "}{", "é", "]]", ",", "\\\\", "\U0001f600"]) | st.text(
    max_size=5
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["images", "annotations", 'in"fo', "l\\"]), VALUES, max_size=4)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and blocks of a few bytes, so that every string and bracket lies across the end of one."""
    monkeypatch.setattr(json_spans, "PIECE_BYTES", 20)
    monkeypatch.setattr(json_spans, "_BLOCK_BYTES", 7)


def lists_of(content: bytes) -> dict[str, list[Any] | None]:
    """What a reader of pieces sees."""
    return {
        key: None if span is None else [entry for piece in span.pieces for entry in parse_piece(content, piece)]
        for key, span in list_spans(content).items()
    }


@given(DOCUMENTS, st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None)
def test_pieces_hold_what_json_reads(document: dict[str, Any], indent: int | None, ascii: bool) -> None:
    content = json.dumps(document, indent=indent, ensure_ascii=ascii).encode()
    expected = {key: value if isinstance(value, list) else None for key, value in document.items()}
    assert lists_of(content) == expected
    assert lists_of(b"\xef\xbb\xbf" + content) == expected


@given(DOCUMENTS, st.data())
@settings(deadline=None, max_examples=400)
def test_no_text_is_read_that_json_refuses(document: dict[str, Any], data: st.DataObject) -> None:
    content = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[place : place + 1]
        else:
            content[place:place] = data.draw(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b"\\", b":", b"1"]))
        content = content or bytearray(b"{}")
    try:
        lists = lists_of(bytes(content))
    except NoSpans:
        return  # read as a whole, which says what is wrong, if anything is
    read = json.loads(content)
    assert {key: value if isinstance(value, list) else None for key, value in read.items()} == lists


def test_pieces_are_as_large_as_asked_for() -> None:
    content = json.dumps({"annotations": [{"id": number} for number in range(50)]}).encode()
    span = list_spans(content)["annotations"]
    assert isinstance(span, ListSpan)
    assert len(span.pieces) == 25
    assert max(end - begin for begin, end in span.pieces) < 40


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"{}}",
        b'{"a": [1, 2,]}',
        b'{"a": [, 1]}',
        b'{"a": [{}}',
        b'{"a": [1]',
        b'{"a": [1] "b": [2]}',
        b'{"a": [1], "a": [2]}',
        b'{"a": [1],}',
        b'{"a" [1]}',
        b'{"a": [{"b": 1} {"b": 2}]}',
        b'{"a": [1]} {}',
        b'"{}"',
        '{"a": []}'.encode("utf-16"),
        '{"a": []}'.encode("utf-32"),
    ],
)
def test_other_texts_are_read_as_a_whole(content: bytes) -> None:
    with pytest.raises(NoSpans):
        lists_of(content)
