"""Folders of columns on this machine: each is made once, by one process, and appears whole.

    CACHE/annotations/KEY/            columns (`maskrcnn_core.data.coco.columns`)
    CACHE/annotations/KEY.lock        held by the process that makes them; the others wait
    CACHE/annotations/digests/...     the digest of a file that has been read before, by its name, size and time

CACHE is $MASKRCNN_CACHE, else $XDG_CACHE_HOME/maskrcnn-ray, else ~/.cache/maskrcnn-ray. The folders that were used
last stay, up to `MOST_BYTES`; removing any of them costs no more than making it again.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from maskrcnn_core.data.coco.columns import INFO_FILE

MOST_BYTES = 64 << 30
_SETTLED_NS = 2_000_000_000  # a file that is younger may change again within the same tick of its clock


def root() -> Path:
    """The folder of all columns, which is there."""
    own = os.environ.get("MASKRCNN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in [Path(own)] if own else [Path(base) / "maskrcnn-ray", _temporary()]:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "annotations" / "digests").mkdir(parents=True, exist_ok=True)
            # What another user could have put there is not read.
            if os.access(folder / "annotations", os.W_OK) and (own or folder.stat().st_uid == os.getuid()):
                return folder / "annotations"
    return Path(tempfile.mkdtemp(prefix="maskrcnn-annotations-"))


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"maskrcnn-ray-{os.getuid()}"


def found(key: str) -> Path | None:
    """The folder of a key; None where it is not there."""
    folder = root() / key
    if not (folder / INFO_FILE).exists():
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / INFO_FILE)
    return folder


def made(keys: Sequence[str], make: Callable[[Path], str]) -> Path:
    """The folder of the first of the keys that is there; else one that is made now, unless another process makes it.

    Args:
        keys: of columns that serve, one at least; processes that share the first wait for each other.
        make: fills an empty folder, and says which of the keys it has.
    """
    with (root() / f"{keys[0]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for known in map(found, keys):
            if known is not None:
                return known
        partial = Path(tempfile.mkdtemp(prefix=f".{keys[0]}.", dir=root()))
        try:
            folder = root() / make(partial)
            shutil.rmtree(folder, ignore_errors=True)  # one without its information is a torn one
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _forget_old(keep=folder.name)
    return folder


def remembered(name: str, size: int, modified_ns: int) -> Path | None:
    """Where the digest of a file is kept; None where the file is too young for its time to tell it from a later one."""
    if time.time_ns() - modified_ns < _SETTLED_NS:
        return None
    identity = f"{name}\n{size}\n{modified_ns}"
    return root() / "digests" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def _forget_old(keep: str) -> None:
    """Removes the folders that have not been used for longest, while all are too large together."""
    folders = sorted(_used_folders(), reverse=True)
    total = 0
    for _, size, folder in folders:
        total += size
        if total > MOST_BYTES and folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)  # who has it mapped keeps what is mapped


def _used_folders() -> Iterator[tuple[float, int, Path]]:
    """Time of the last use, bytes, folder."""
    for folder in root().iterdir():
        with contextlib.suppress(OSError):
            used = (folder / INFO_FILE).stat().st_mtime
            yield used, sum(file.stat().st_size for file in folder.iterdir()), folder
