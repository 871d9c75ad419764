"""A checkpoint is a folder: `model.safetensors` + `config.json` (+ `training/` for resume). It loads with no flags."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.checkpoint_config import (
    CONFIG_NAME,
    DIGEST,
    FORMAT_VERSION,
    LONGEST_TEXT,
    WEIGHTS_NAME,
    config_to_dict,
    read_config,
)
from maskrcnn_core.weights.format_1 import FORMAT_1, renamed_weight
from maskrcnn_core.weights.soundness import check_finite


def save_checkpoint(folder: Path | str, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write weights and configuration; each file appears whole or not at all, the configuration last.

    Args:
        folder: made if missing.
        state: the detector's state dict.
        config: the detector's configuration with its categories.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors)
    _write_whole(folder / WEIGHTS_NAME, content)
    document = {
        "format_version": FORMAT_VERSION,
        DIGEST: hashlib.sha256(content).hexdigest(),
        "model": config_to_dict(config),
    }
    _write_whole(folder / CONFIG_NAME, (json.dumps(document, indent=2) + "\n").encode())


def load_checkpoint(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, cut short, not a checkpoint of this format, other than it was written, or
            holds values that are no finite numbers.
    """
    version, config, digest = read_config(folder)
    with _weights_errors(Path(folder) / WEIGHTS_NAME) as path:
        state = safetensors.torch.load_file(path)
        if digest is not None and file_digest(path) != digest:
            raise CheckpointError(
                f"{path}: other content than when it was written ({DIGEST} in {CONFIG_NAME}); it is damaged: copy it "
                f"again (if you have replaced it yourself, take {DIGEST} out of {CONFIG_NAME})"
            )
    check_finite(state, str(path))
    return config, {_current_name(name, version): value for name, value in state.items()}


def weight_shapes(folder: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each weight by its name, from the header alone.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    version = read_config(folder)[0]
    with _weights_errors(Path(folder) / WEIGHTS_NAME) as path, safetensors.safe_open(path, "pt") as file:
        names: list[str] = list(file.keys())
        return {_current_name(name, version): tuple(file.get_slice(name).get_shape()) for name in names}


def _current_name(name: str, version: int) -> str:
    return renamed_weight(name) if version == FORMAT_1 else name


def check_weights(folder: Path | str) -> None:
    """Make sure, from the header and the file's length alone, that the weights are there and whole.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    with _weights_errors(Path(folder) / WEIGHTS_NAME) as path, safetensors.safe_open(path, "pt"):
        pass


@contextmanager
def _weights_errors(path: Path) -> Iterator[Path]:
    try:
        yield path
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, expected the weights beside {CONFIG_NAME}") from error
    except (safetensors.SafetensorError, OSError) as error:
        reason = printable(str(error))[:LONGEST_TEXT]
        raise CheckpointError(
            f"{path}: not readable as safetensors ({reason}); the file is damaged or cut short: copy it again"
        ) from error


def fingerprint(folder: Path | str) -> str:
    """SHA-256 over weights and configuration of a checkpoint folder, hexadecimal.

    Raises:
        CheckpointError: a file is missing.
    """
    return file_digest(*(Path(folder) / name for name in (CONFIG_NAME, WEIGHTS_NAME)))


def file_digest(*paths: Path) -> str:
    """SHA-256 over the bytes of files, one after the other, hexadecimal.

    Raises:
        CheckpointError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
