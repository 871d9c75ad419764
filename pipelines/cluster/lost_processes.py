"""What Ray reports when processes, machines or memory are lost, and what full disks look like, in a sentence."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import ray.exceptions

from maskrcnn_core.errors import StorageError, UserError

# Where Ray's errors keep the one behind them.
_LINKS = ("cause", "controller_failure", "health_check_failure")

# An error may hold the same one again.
_LONGEST_CHAIN = 20

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_ROOM_TEXTS = ("No space left on device", "Disk quota exceeded", "(os error 28)", "StorageFull")
_NOT_WRITTEN_TEXTS = ("PytorchStreamWriter failed", *_NO_ROOM_TEXTS)
_LITTLE_ROOM = 1 << 20

_OUT_OF_MEMORY = "the machine ran out of memory"
_KILLED = "a process of it was killed or crashed (most often the system does so when memory runs out)"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what is behind it, Ray's own links included."""
    current: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if current is None:
            return
        yield current
        inner = next((link for name in _LINKS if (link := getattr(current, name, None))), None)
        if inner is None and (failures := getattr(current, "worker_failures", None)):
            inner = next(iter(failures.values()))
        current = inner if isinstance(inner, BaseException) else current.__cause__


def why_lost(error: BaseException) -> str | None:
    """Why processes were lost, where that is what an error is about; None where code has failed."""
    for cause in causes(error):
        if isinstance(cause, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(cause):
            return _OUT_OF_MEMORY
        if isinstance(cause, ray.exceptions.OutOfDiskError | ray.exceptions.ObjectStoreFullError):
            return "the disk or the shared memory of Ray is full (/tmp/ray, /dev/shm)"
        if isinstance(cause, ray.exceptions.NodeDiedError):
            return "a machine of it was lost"
        if isinstance(cause, ray.exceptions.RayTaskError):
            continue
        if isinstance(
            cause,
            ray.exceptions.RayActorError
            | ray.exceptions.WorkerCrashedError
            | ray.exceptions.LocalRayletDiedError
            | ray.exceptions.OwnerDiedError,
        ):
            return _KILLED if _is_death(cause) else None
    return None


def _is_death(error: BaseException) -> bool:
    """An actor that could not be built has died as well; Ray tells that apart by words only."""
    return "creation task" not in str(error)


def require_room(error: BaseException, output: str) -> None:
    """Raise a StorageError where the cause of an error is a disk without room.

    Args:
        error: what failed.
        output: folder of the run, for the message.
    """
    for cause in causes(error):
        if isinstance(cause, UserError):
            return
        if (isinstance(cause, OSError) and cause.errno in _NO_ROOM) or any(
            text in str(cause) for text in _NO_ROOM_TEXTS
        ):
            raise no_room(output) from error


def as_write_error(error: BaseException, folder: Path, output: str) -> BaseException:
    """What a failed write of tensors is: a StorageError where the place refuses them, or else the error itself.

    Args:
        error: of torch, safetensors or the system.
        folder: that was written into, as it was left.
        output: of the run, for the message.
    """
    text = str(error)
    if isinstance(error, UserError) or not (
        isinstance(error, OSError) or any(part in text for part in _NOT_WRITTEN_TEXTS)
    ):
        return error
    is_full = any(part in text for part in _NO_ROOM_TEXTS) or getattr(error, "errno", None) in _NO_ROOM
    with contextlib.suppress(OSError):
        is_full = is_full or shutil.disk_usage(folder.parent).free < _LITTLE_ROOM
    return no_room(output) if is_full else StorageError(f"{output}: a checkpoint cannot be written: {text}")


def no_room(output: str) -> StorageError:
    """The disk is full."""
    return StorageError(f"{output}: No space left on device; make room, and the same command goes on where it stopped")
