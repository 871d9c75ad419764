import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.json_stream import Entry, stream_entries

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
