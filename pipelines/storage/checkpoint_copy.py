"""Checkpoints on S3, brought to this machine: each process of a job asks, the first one fetches."""

import hashlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from pyarrow import fs

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines import storage

# Of a checkpoint's folder, what a detector needs; the state of a training stays where it is.
_FILES = ("model.safetensors", "config.json")


def local_checkpoint(uri: str) -> str:
    """The checkpoint folder on this machine: the same one where it is local, else a copy in the temporary folder.

    Copies are named by the files' sizes and times, so that a checkpoint that is written anew is fetched anew, and
    appear whole.

    Raises:
        CheckpointError: there is no checkpoint.
        StorageError: it cannot be read.
    """
    if storage.is_local(uri):
        return uri
    filesystem, path = storage.filesystem_and_path(uri)
    with storage.naming(uri):
        infos = filesystem.get_file_info([f"{path}/{name}" for name in _FILES])
    missing = [name for name, info in zip(_FILES, infos, strict=True) if info.type != fs.FileType.File]
    if missing:
        hint = ""
        if Path(path).suffix:
            hint = "; a file of another framework becomes one by python -m jobs.convert --source FILE --output FOLDER"
        raise CheckpointError(f"{uri}: no {missing[0]} in it, expected a checkpoint folder{hint}")
    name = hashlib.sha256(repr([uri, *((info.size, str(info.mtime)) for info in infos)]).encode()).hexdigest()[:24]
    copies = Path(tempfile.gettempdir()) / f"maskrcnn-checkpoints-{os.getuid()}"
    copy = copies / name
    if not copy.is_dir():
        partial = copies / f".{name}.{uuid.uuid4().hex}"
        partial.mkdir(parents=True, mode=0o700)
        for file in _FILES:
            (partial / file).write_bytes(storage.read_bytes(storage.join(uri, file)))
        try:
            partial.rename(copy)
        except OSError:  # another process was first
            storage.delete_folder(str(partial))
    return str(copy)


def load_predictor(checkpoint: str, settings: PredictorSettings) -> Any:
    """`maskrcnn_core.inference.predictor.load_predictor` of a checkpoint anywhere."""
    from maskrcnn_core.inference import predictor

    return predictor.load_predictor(local_checkpoint(checkpoint), settings)


def describe_checkpoint(checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
    """`maskrcnn_core.inference.predictor.describe_checkpoint` of a checkpoint anywhere."""
    from maskrcnn_core.inference import predictor

    return predictor.describe_checkpoint(local_checkpoint(checkpoint), settings)
