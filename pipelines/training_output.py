"""The folder of a training run: what lies where, who owns it, and how checkpoints appear in it.

OUTPUT/run.json                   configuration; another one in the same folder is refused
OUTPUT/checkpoints/{last,best}    checkpoint folders for every other job
OUTPUT/tensorboard/               event files
OUTPUT/summary.json               there once the run has finished
OUTPUT/data.json                  what the training data holds, and what was left out of it
OUTPUT/resume/step-.../           the newest two checkpoints with everything that a resume needs (checkpoint_store)
OUTPUT/samples/                   image ids of every step
OUTPUT/validation/                scores of every validation
OUTPUT/_ray/                      Ray Train's storage
"""

import json
import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.train_config import TrainRun
from pipelines import storage
from pipelines.checkpoint_store import copy_file

_FREE_TO_CHANGE = (
    "cluster.",
    "data.check_images",
    "data.max_pixels",
    "data.reader",
    "data.workers",
    "output",
    "train.checkpoint_every",
    "train.log_every",
    "train.max_failures",
    "train.max_skipped_steps",
    "train.min_workers",
    "train.num_workers",
    "train.pictures",
    "train.threads_per_worker",
    "train.use_gpu",
    "train.validate_in",
    "train.validation_losses",
    "train.validation_tasks",
    "train.validate_every",
)
"""Settings that do not change what is learned (beyond the order of sums): a resumed run may change them."""


def checkpoint_uri(output: str, name: str) -> str:
    """Where the checkpoint `last` or `best` lies."""
    return storage.join(output, "checkpoints", name)


def resume_uri(output: str) -> str:
    """Where the checkpoints lie that a run resumes from."""
    return storage.join(output, "resume")


def take_over(output: str) -> str:
    """Make this process the one that writes to the run; returns the proof.

    A driver that died may have left workers that still run for some seconds: they write no more.
    """
    owner = uuid.uuid4().hex
    storage.write_bytes_atomically(storage.join(output, "_ray", "owner"), owner.encode())
    return owner


def owns(output: str, owner: str) -> bool:
    """Whether nobody has taken the run over since."""
    return storage.read_bytes(storage.join(output, "_ray", "owner")) == owner.encode()


def require_visible(output: str) -> None:
    """Make sure that this machine sees the folder of the run: a worker on another node may not.

    Raises:
        StorageError: it does not.
    """
    uri = storage.join(output, "_ray", "owner")
    if not storage.exists(uri):
        raise StorageError(
            f"{output}: not there on node {socket.gethostname()}, where a training worker runs; expected an output "
            "that all nodes of the cluster see: s3://bucket/folder or a shared file system"
        )


def initial_checkpoints(init: str) -> tuple[str, ...]:
    """The folders that `TrainRun.init` names: one, or several with commas between them."""
    return (init,) if storage.is_folder(init) else tuple(part.strip() for part in init.split(",") if part.strip())


def is_claimed(output: str) -> bool:
    """Whether a run lives in the folder."""
    return storage.exists(storage.join(output, "run.json"))


def claim(run: TrainRun) -> None:
    """Write run.json, or compare it with the run that owns the folder.

    Raises:
        ConfigError: a run with other settings lives there; names them.
        StorageError: the folder holds a run.json that is not one of ours, or other files.
    """
    uri = storage.join(run.output, "run.json")
    settings: dict[str, Any] = json.loads(json.dumps(asdict(run)))
    if not is_claimed(run.output):
        if storage.exists(storage.join(run.output, "checkpoints")):
            raise StorageError(f"{run.output}: holds checkpoints but no run.json; expected a new or empty folder")
        storage.write_bytes_atomically(uri, json.dumps(settings, indent=2).encode())
        return
    try:
        owner = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: not readable as JSON ({error}); use a new output") from error
    differences = _differences(_flat(owner), _flat(settings))
    if differences:
        raise ConfigError(
            f"{run.output}: belongs to a run with other settings: {'; '.join(differences)}; "
            "give the same settings to resume it, or another --output to start a new run"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def _differences(owner: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    # A setting that did not exist when the run began: what it does by default is what the run has done.
    owner = {**{name: value for name, value in _flat(_defaults()).items() if name not in owner}, **owner}
    names = [name for name in {**owner, **ours} if not name.startswith(_FREE_TO_CHANGE)]
    return [
        f"{name} was {_short(owner.get(name))}, now {_short(ours.get(name))}"
        for name in names
        if owner.get(name) != ours.get(name)
    ]


def _defaults() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(TrainRun(output=""))))
    return settings


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def publish(folder: Path, uri: str) -> None:
    """Move a complete local checkpoint folder to its place, over an older one; `folder` is gone afterwards.

    Locally by renames, on the file system of `uri`: a reader finds the old checkpoint or the new one, never a mixture.
    On S3 file after file, the weights last.
    """
    if not storage.is_local(uri):
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.suffix)
        for path in files:
            copy_file(path, storage.join(uri, str(path.relative_to(folder))))
        shutil.rmtree(folder)
        return
    target = Path(storage.filesystem_and_path(uri)[1])
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def upload_folder(folder: Path, uri: str) -> None:
    """Copy the files of a local folder to a remote uri; nothing where the uri is local, because they lie there."""
    if not storage.is_local(uri):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            copy_file(path, storage.join(uri, str(path.relative_to(folder))))


def read_summary(output: str) -> dict[str, Any] | None:
    """What `write_summary` stored; None while the run has not finished."""
    uri = storage.join(output, "summary.json")
    if not storage.exists(uri):
        return None
    summary: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return summary


def write_summary(output: str, summary: Mapping[str, Any]) -> None:
    """Mark the run as finished."""
    storage.write_bytes_atomically(storage.join(output, "summary.json"), json.dumps(summary, indent=2).encode())
