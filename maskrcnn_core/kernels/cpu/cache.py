"""Numba's cache on disk, made so that nothing that happens to the disk costs more than the time to compile.

Numba itself raises where a file of its cache is torn, or cannot be written because the disk is full: at the first call
for each type of arguments, that is, in the middle of a prediction or a training step. And it believes whatever machine
code it reads. Here a file that is not what was written is thrown away and made again, and where none can be written
the loop is compiled for this process alone; the log says so once.
"""

import contextlib
import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

_LOGGER = logging.getLogger(__name__)

_DIGEST_BYTES = 32


def kept_on_disk(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Let what Numba compiles of a function outlast the process, where there is a place for it.

    Args:
        dispatcher: what `numba.njit` made of `function`, without a cache.
    """
    try:
        dispatcher._cache = _ForgivingCache(function)
    except (RuntimeError, OSError) as error:  # neither the package's folder nor the user's can be written
        _say(os.path.dirname(function.__code__.co_filename), error)


class _ForgivingCache(FunctionCache):  # type: ignore[misc]
    """Never raises for what is on the disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        # Another stamp than Numba's own, whose files have no digest: they count as out of date.
        stamp = (locator.get_source_stamp(), "sha256")
        self._cache_file = _CheckedFile(self.cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function for some types of arguments; None = there is none, or none that can be used."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever unpickling makes of a torn file
            self._cache_file.forget()
            _say(self.cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it for the next process, where that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _say(self.cache_path, error)


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """Files that end with the digest of what was written; unpickling does not look at what follows its end."""

    def _dump(self, obj: Any) -> bytes:
        content: bytes = super()._dump(obj)
        return content + hashlib.sha256(content).digest()

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as stream:
            content = stream.read()
        if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
            raise ValueError(f"{name} is not what was written")
        return pickle.loads(content)

    def forget(self) -> None:
        """Remove the index, so that all files it names are made again."""
        with contextlib.suppress(OSError):  # then the next process finds the same, and says the same
            os.unlink(self._index_path)


def _say(folder: str, error: Exception) -> None:
    if isinstance(error, OSError):
        reason, mend = error.strerror or str(error), "make room, or set NUMBA_CACHE_DIR to a folder that can be written"
    elif isinstance(error, RuntimeError):
        reason, mend = "nothing can be written", "set NUMBA_CACHE_DIR to a folder where it can"
    else:
        reason, mend = "a file is not what was written", "if this is said at every start, delete that folder"
    _say_once(folder, reason, mend)


@cache
def _say_once(folder: str, reason: str, mend: str) -> None:
    _LOGGER.warning("%s, where loops compiled by Numba are kept: %s; compiling anew, %s", folder, reason, mend)
