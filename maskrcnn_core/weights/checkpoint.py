"""A checkpoint is a folder: `model.safetensors` + `config.json` (+ `training/` for resume). It loads with no flags."""

import dataclasses
import hashlib
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.errors import CheckpointError, ConfigError

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT_VERSION = 1

_Config = TypeVar("_Config")


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
    _write_whole(folder / WEIGHTS_NAME, safetensors.torch.save(tensors))
    document = {"format_version": FORMAT_VERSION, "model": config_to_dict(config)}
    _write_whole(folder / CONFIG_NAME, (json.dumps(document, indent=2) + "\n").encode())


def load_checkpoint(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, cut short or not a checkpoint of this format.
    """
    config = load_config(folder)
    with _weights_errors(Path(folder) / WEIGHTS_NAME) as path:
        return config, safetensors.torch.load_file(path)


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
        raise CheckpointError(
            f"{path}: not readable as safetensors ({error}); the file is damaged or cut short: copy it again"
        ) from error


def load_config(folder: Path | str) -> ModelConfig:
    """Configuration of a checkpoint folder, without its weights.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    path = Path(folder) / CONFIG_NAME
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder, expected {WEIGHTS_NAME} and {CONFIG_NAME} in it")
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {CONFIG_NAME} in it, expected a checkpoint folder; "
            "jobs.train writes one under OUTPUT/checkpoints, jobs.convert makes one from another framework's file"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); the file is damaged or cut short: copy it again") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: got format_version {version!r}, expected {FORMAT_VERSION}")
    try:
        return config_from_dict(ModelConfig, document["model"], "model")
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def fingerprint(folder: Path | str) -> str:
    """SHA-256 over weights and configuration of a checkpoint folder, hexadecimal.

    Raises:
        CheckpointError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        try:
            with (Path(folder) / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{Path(folder) / name}: {error.strerror or error}") from error
    return digest.hexdigest()


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return document


def config_from_dict(kind: type[_Config], document: Mapping[str, Any], where: str) -> _Config:
    """The inverse of `config_to_dict`; fields that are absent take their defaults.

    Raises:
        ConfigError: an unknown or missing key or a value of the wrong type or range, named by its path from `where`.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where}: got {type(document).__name__}, expected a mapping")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(document) - set(hints))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not a setting; it may come from a newer version of this software")
    for field in dataclasses.fields(typing.cast(Any, kind)):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in document:
            raise ConfigError(f"{where}.{field.name} is missing")
    values = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in document.items()}
    return kind(**values)


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type[Any], hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: got {value!r}, expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: got {value!r}, expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: got {len(value)} values, expected {len(arguments)}")
        return tuple(_typed(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: got {value!r}, expected {hint.__name__}")
    return float(value) if hint is float else value


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
