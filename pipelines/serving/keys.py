"""Keys that clients may use, known by their SHA-256 alone."""

import hashlib
import hmac
import re
from collections.abc import Mapping

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines import storage

_LINE = re.compile(r"(\S{1,100})\s+([0-9a-fA-F]{64})")
_MOST_KEYS = 10_000


class Keys:
    """Names of keys by their digests."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None = nobody's. Takes as long for a wrong key as for a right one."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def read_keys(uri: str) -> Keys:
    """Keys of a file: lines `NAME SHA256`, `#` begins a comment.

    Raises:
        ConfigError: it cannot be read, holds no key, or something else.
    """
    try:
        lines = storage.read_bytes(uri).decode().splitlines()
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.keys: {error}; expected a file of lines NAME SHA256") from error
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None or found[1] in digests or len(digests) == _MOST_KEYS:
            raise ConfigError(
                f"serve.keys: line {number} of {uri} is no NAME SHA256 (64 hexadecimal digits), each name once; the "
                "digest of a key is what `printf %s KEY | sha256sum` prints"
            )
        digests[found[1]] = bytes.fromhex(found[2])
    if not digests:
        raise ConfigError(f"serve.keys: {uri} holds no key; expected lines NAME SHA256")
    return Keys(digests)
