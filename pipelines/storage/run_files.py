"""The small JSON files in which a run keeps its own books, checked as they are read: one that is torn is named, with
what can be done about it, and never taken for something else. What nobody edits holds a digest of its content."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from maskrcnn_core.errors import StorageError
from pipelines import storage

_DIGEST = "sha256"


def json_object_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON object as `read_json_object` reads it."""
    return json.dumps({**content, _DIGEST: _digest(content)}, indent=2).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json_object(uri: str, fields: Mapping[str, type | tuple[type, ...]], mend: str) -> dict[str, Any]:
    """The JSON object in a file, without the digest.

    Args:
        uri: the file.
        fields: that it must have, and their types (a bool is no int).
        mend: what the user can do where it is damaged.

    Raises:
        StorageError: it is not there, cannot be read, or is damaged.
    """
    content = storage.read_bytes(uri)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not content else f"is no JSON ({_short(str(error))})"
        raise StorageError(f"{uri}: {what}; {mend}") from error
    if not isinstance(document, dict):
        raise StorageError(f"{uri}: holds {_short(repr(document))}, expected a JSON object; {mend}")
    digest = document.pop(_DIGEST, None)  # files of earlier releases have none
    if digest is not None and digest != _digest(document):
        raise StorageError(f"{uri}: other content than when it was written; {mend}")
    for name, expected in fields.items():
        value = document.get(name)
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
            raise StorageError(f"{uri}: {name} is {_short(repr(value))}, expected {_in_words(expected)}; {mend}")
    return document


def _in_words(expected: type | tuple[type, ...]) -> str:
    names = {int: "a whole number", str: "text", dict: "an object", list: "a list"}
    types = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join(names.get(one, one.__name__) for one in types)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
