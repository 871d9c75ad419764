"""JSON files from outside: their encoding, and what is wrong with them in one line, wherever they are read."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from maskrcnn_core.errors import AnnotationError

_BYTES_LOOKED_AT = 4


def encoding_of(first: bytes) -> str:
    """UTF-8, with or without a mark, UTF-16 or UTF-32, by the first four bytes: what RFC 4627 (section 3) allows."""
    return json.detect_encoding(first[:_BYTES_LOOKED_AT])


def parse_json(content: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        AnnotationError: it is no JSON text; says where, without the file's name.
    """
    encoding = encoding_of(content)
    try:
        with without_garbage_collection():
            return json.loads(content.decode(encoding))
    except UnicodeDecodeError as error:
        raise AnnotationError(not_text(encoding, error.start)) from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"not JSON ({json_fault(error)})") from None


def not_text(encoding: str, offset: int) -> str:
    """What to say of bytes that are not of the encoding that the file's first bytes promise."""
    name = encoding.upper().removesuffix("-SIG")
    return f"not JSON (byte {offset} is no {name} text; is it Latin-1 or Windows-1252? expected UTF-8: save it anew)"


def json_fault(error: ValueError | RecursionError, before: int = 0) -> str:
    """What json says of a text, with the place as a character of the whole, of which `before` are not at hand."""
    if isinstance(error, RecursionError):
        return "lists or objects in one another, far deeper than any COCO file"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {before + error.pos}"
    return "a number of thousands of digits"  # the other ValueError of Python's reader


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Python would look again and again for cycles among the millions of entries, most of the time, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
