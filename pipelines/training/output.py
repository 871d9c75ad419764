"""The folder of a training run: what lies where, who owns it, and how checkpoints appear in it.

OUTPUT/run.json                   configuration and digests of the annotations; another one in the same folder is
                                  refused. Who creates it has claimed the folder
OUTPUT/checkpoints/{last,best}    checkpoint folders for every other job
OUTPUT/tensorboard/               event files
OUTPUT/trackers/                  what the run is called in MLflow and Weights & Biases, with train.trackers
OUTPUT/{mlruns,wandb}/            their files, where no server keeps them
OUTPUT/summary.json               there once the run has finished
OUTPUT/curves.svg, curves.json    losses, scores, learning rate and speed over the steps, drawn and in numbers
OUTPUT/data.json                  what the training data holds, and what was left out of it
OUTPUT/resume/step-.../           the newest two checkpoints with everything that a resume needs (checkpoint_store)
OUTPUT/samples/                   image ids of every step
OUTPUT/bad_images.jsonl           images that could not be used and were replaced
OUTPUT/validation/                scores of every validation
OUTPUT/_ray/                      Ray Train's storage
"""

import ctypes
import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.weights.format_1 import has_old_names, renamed_settings
from pipelines import storage
from pipelines.storage.run_files import json_object_bytes, read_json_object
from pipelines.training.bad_images import BAD_IMAGES
from pipelines.training.checkpoint_store import copy_file, list_checkpoints
from pipelines.training.config import TrainConfig, TrainRun

_FREE_TO_CHANGE = (
    "cluster.",
    "data.check_images",
    "data.max_bad_fraction",
    "data.max_pixels",
    "data.reader",
    "data.workers",
    "output",
    "storage.",
    "train.accelerator_type",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.log_every",
    "train.max_failures",
    "train.max_skipped_steps",
    "train.min_workers",
    "train.num_workers",
    "train.pictures",
    "train.threads_per_worker",
    "train.timeout_minutes",
    "train.trackers",
    "train.use_gpu",
    "train.validate_in",
    "train.validation_losses",
    "train.validation_tasks",
    "train.validate_every",
    "train.wait_minutes",
    "train.validations",
)
"""Settings that do not change what is learned (beyond the order of sums): a resumed run may change them. Beyond them,
the data may have moved (`_MOVABLE`), and `train.steps` may grow: what follows the last step (cosine, `_SHARES`) then
follows the new one from there on."""

_SHARES = {"train.warmup_steps": "train.warmup_share", "train.decay_steps": "train.decay_shares"}
"""Steps of the schedule that follow from shares of the run, where those are given: they may change while it grows. What
was asked for may be said in another way (`train.epochs` too) that comes to the same steps."""

_MOVABLE = {
    "data.train.annotations": ("data.train.annotations", "data.train.images"),
    "data.val.annotations": ("data.val.annotations", "data.val.images"),
    "data.train.proposals": ("data.train.proposals",),
    "data.val.proposals": ("data.val.proposals",),
}
"""Settings that may change while the content of the file that the first one names stays the same."""

_CONTENT = "content"
_MEND = "put it back from a copy, or use a new output"


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


def require_free(output: str) -> None:
    """Make sure that nothing but a training run can be in a folder that is to become one.

    Raises:
        StorageError: it is a file, holds a labelling run, or checkpoints without a run.json.
    """
    if is_claimed(output) or not storage.exists(output):
        return
    if not storage.is_folder(output):
        raise StorageError(f"{output}: is a file; expected a new or empty folder")
    if storage.exists(storage.join(output, "_run")) or storage.exists(storage.join(output, "labels")):
        raise StorageError(f"{output}: is the folder of a labelling run; choose another --output")
    if storage.exists(storage.join(output, "checkpoints")):
        raise StorageError(f"{output}: holds checkpoints but no run.json; expected a new or empty folder")


def claim(run: TrainRun, content: Mapping[str, str] | None = None) -> bool:
    """Create run.json, or compare it with the run that owns the folder, which then takes over what may change.

    Args:
        run: its configuration.
        content: digests of the files that the settings of these names stand for.

    Returns:
        Whether the folder was free and is this run's now.

    Raises:
        ConfigError: a run with other settings lives there; names them.
        StorageError: the folder holds something else, or run.json is damaged.
    """
    require_free(run.output)
    uri = storage.join(run.output, "run.json")
    settings: dict[str, Any] = json.loads(json.dumps({**asdict(run), _CONTENT: dict(content or {})}))
    written = json.dumps(settings, indent=2).encode()
    if storage.create_bytes(uri, written):
        return True
    stored = read_json_object(uri, {"train": dict, "data": dict}, _MEND)
    if has_old_names(stored.get("model")):  # a run that began when settings had other names
        stored["model"] = renamed_settings(stored["model"])
    owner, ours = flat_settings(stored), flat_settings(settings)
    differences = _differences(owner, ours)
    if differences:
        raise ConfigError(
            f"{run.output}: belongs to a run with other settings: {'; '.join(differences)}; "
            "give the same settings to resume it, or another --output to start a new run"
        )
    if _grows(owner, ours):  # what was finished no longer is
        storage.delete_file(storage.join(run.output, "summary.json"))
    if owner != ours:
        storage.write_bytes_atomically(uri, written)
    return False


def with_batch_size_of_run(run: TrainRun) -> TrainConfig:
    """The settings of a run that goes on: auto is the batch size that was found when it began.

    Raises:
        StorageError: run.json is damaged.
    """
    if run.train.batch_size != "auto":
        return run.train
    stored = read_json_object(storage.join(run.output, "run.json"), {"train": dict, "data": dict}, _MEND)
    return replace(run.train, batch_size=stored["train"].get("batch_size", TrainConfig().batch_size))


def release(output: str, owner: str) -> None:
    """Give a folder up that this process has claimed and in which nothing was trained: it is free again.

    Nothing happens where there is a checkpoint, or another process has taken the run over.
    """
    if list_checkpoints(resume_uri(output)) or not owns(output, owner):
        return
    for name in ("run.json", "data.json", "curves.svg", "curves.json", BAD_IMAGES):
        storage.delete_file(storage.join(output, name))
    for name in ("_ray", "annotations", "samples", "tensorboard", "trackers", "mlruns", "wandb"):
        storage.delete_folder(storage.join(output, name))
    for name in ("checkpoints", "resume"):
        storage.delete_if_empty(storage.join(output, name))
    storage.delete_if_empty(output)


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their dotted names: `train.learning_rate`."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def _differences(owner: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    # A setting that did not exist when the run began: what it does by default is what the run has done.
    owner = {**{name: value for name, value in flat_settings(_defaults()).items() if name not in owner}, **owner}
    moved = {name for given, names in _MOVABLE.items() if _is_same_content(given, owner, ours) for name in names}
    free = (*_FREE_TO_CHANGE, f"{_CONTENT}.", *_SHARES.values())
    follows = _follows_length(owner, ours) if _grows(owner, ours) else set()
    if owner["train.steps"] == ours["train.steps"]:
        follows.add("train.epochs")
    names = [name for name in {**owner, **ours} if not name.startswith(free) and name not in moved | follows]
    changed = [
        f"{name} was {_short(owner.get(name))}, now {_short(ours.get(name))}"
        for name in names
        if owner.get(name) != ours.get(name)
    ]
    return changed + [
        f"{name} holds something else than when the run began (SHA-256 {before:.12}, now {now:.12})"
        for name in _MOVABLE
        if (before := owner.get(f"{_CONTENT}.{name}")) and (now := ours.get(f"{_CONTENT}.{name}")) and before != now
    ]


def _is_same_content(name: str, owner: dict[str, Any], ours: dict[str, Any]) -> bool:
    digest = owner.get(f"{_CONTENT}.{name}")
    return bool(digest) and digest == ours.get(f"{_CONTENT}.{name}")


def _grows(owner: dict[str, Any], ours: dict[str, Any]) -> bool:
    before, now = owner.get("train.steps"), ours["train.steps"]
    return isinstance(before, int) and now > before


def _follows_length(owner: dict[str, Any], ours: dict[str, Any]) -> set[str]:
    """Settings that are others because the run is longer, and the same shares of it."""
    same = {steps for steps, share in _SHARES.items() if ours[share] and ours[share] == owner[share]}
    return {"train.steps", "train.epochs", *same}


def _defaults() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(TrainRun(output=""))))
    return settings


def _short(value: object, limit: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def publish(folder: Path, uri: str) -> None:
    """Move a complete local checkpoint folder to its place, over an older one; `folder` is gone afterwards.

    Locally by renames, on the file system of `uri`: a reader finds the old checkpoint or the new one, never a mixture,
    and at no moment none where the system can exchange two names (Linux). On S3 file after file, the weights last.
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
    if target.exists() and not exchange(new, target):
        target.rename(old)
    if not target.exists():
        new.rename(target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2 with RENAME_EXCHANGE); False, and nothing done, where that is not to
    be had."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_working_directory, both = -100, 2
    done: int = rename(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), both)
    return done == 0


def read_summary(output: str) -> dict[str, Any] | None:
    """What `write_summary` stored; None while the run has not finished.

    Raises:
        StorageError: it is damaged.
    """
    uri = storage.join(output, "summary.json")
    if not storage.exists(uri):
        return None
    fields = {"checkpoint": str, "last": str, "steps": int, "images": int}
    return read_json_object(uri, fields, "delete it and give the same command again")


def write_summary(output: str, summary: Mapping[str, Any]) -> None:
    """Mark the run as finished."""
    storage.write_bytes_atomically(storage.join(output, "summary.json"), json_object_bytes(summary))
