"""A checkpoint is a folder: `model.safetensors` + `config.json` (+ `training/` for resume). It loads with no flags."""

import dataclasses
import hashlib
import json
import os
import re
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

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.format_1 import FORMAT_1, in_names_of_format_1, renamed_settings, renamed_weight
from maskrcnn_core.weights.soundness import check_finite

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT_VERSION = 2
_DIGEST = "weights_sha256"
_MAX_CONFIG_BYTES = 1 << 24
_MAX_TEXT = 200

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
    content = safetensors.torch.save(tensors)
    _write_whole(folder / WEIGHTS_NAME, content)
    document = {
        "format_version": FORMAT_VERSION,
        _DIGEST: hashlib.sha256(content).hexdigest(),
        "model": config_to_dict(config),
    }
    _write_whole(folder / CONFIG_NAME, (json.dumps(document, indent=2) + "\n").encode())


def load_checkpoint(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, cut short, not a checkpoint of this format, other than it was written, or
            holds values that are no finite numbers.
    """
    version, config, digest = _read_config(folder)
    with _weights_errors(Path(folder) / WEIGHTS_NAME) as path:
        state = safetensors.torch.load_file(path)
        if digest is not None and file_digest(path) != digest:
            raise CheckpointError(
                f"{path}: other content than when it was written ({_DIGEST} in {CONFIG_NAME}); it is damaged: copy it "
                f"again (if you have replaced it yourself, take {_DIGEST} out of {CONFIG_NAME})"
            )
    check_finite(state, str(path))
    return config, {_current_name(name, version): value for name, value in state.items()}


def weight_shapes(folder: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each weight by its name, from the header alone.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    version = _read_config(folder)[0]
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
        reason = printable(str(error))[:_MAX_TEXT]
        raise CheckpointError(
            f"{path}: not readable as safetensors ({reason}); the file is damaged or cut short: copy it again"
        ) from error


def load_config(folder: Path | str) -> ModelConfig:
    """Configuration of a checkpoint folder, without its weights.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    return _read_config(folder)[1]


def _read_config(folder: Path | str) -> tuple[int, ModelConfig, str | None]:
    """Format, configuration, and the digest of the weights where the folder has it."""
    path = Path(folder) / CONFIG_NAME
    document = _read_document(path)
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version not in (FORMAT_1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: got format_version {_shown(version)}, expected {FORMAT_VERSION}, or {FORMAT_1}, which is read too"
        )
    digest = document.get(_DIGEST)
    if digest is not None and (not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None):
        raise CheckpointError(f"{path}: {_DIGEST}: got {_shown(digest)}, expected the SHA-256 of {WEIGHTS_NAME}")
    if "model" not in document:
        raise CheckpointError(f"{path}: model is missing, expected the detector's settings; copy the file again")
    read = _config_of_format_1 if version == FORMAT_1 else _config
    try:
        return version, read(document["model"]), digest
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _config(model: Any) -> ModelConfig:
    return config_from_dict(ModelConfig, model, "model")


def _config_of_format_1(model: Any) -> ModelConfig:
    renamed = renamed_settings(model)
    try:
        return _config(renamed)
    except ConfigError as error:
        raise ConfigError(in_names_of_format_1(str(error))) from error


def _read_document(path: Path) -> Any:
    folder = path.parent
    if folder.is_file():
        raise CheckpointError(
            f"{folder}: is a file, expected a checkpoint folder; a file of another framework becomes one by "
            f"python -m jobs.convert --source {folder} --output FOLDER"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder, expected {WEIGHTS_NAME} and {CONFIG_NAME} in it")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: over {_MAX_CONFIG_BYTES:,} bytes, expected the settings of a detector")
        return json.loads(content)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no {CONFIG_NAME} in it, expected a checkpoint folder; "
            "jobs.train writes one under OUTPUT/checkpoints, jobs.convert makes one from another framework's file"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: nested too deeply, expected the settings of a detector") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: not JSON ({printable(str(error))[:_MAX_TEXT]}); the file is damaged or cut short: copy it again"
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


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return document


def config_from_dict(config_class: type[_Config], document: Any, where: str) -> _Config:
    """The inverse of `config_to_dict`; fields that are absent take their defaults.

    Raises:
        ConfigError: an unknown or missing key or a value of the wrong type or range, named by its path from `where`.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where}: got {type(document).__name__}, expected a mapping")
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(document) - set(hints))
    if unknown:
        raise ConfigError(
            f"{where}.{printable(unknown[0])[:_MAX_TEXT]} is not a setting; it may come from a newer version of this "
            "software"
        )
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in document:
            raise ConfigError(f"{where}.{field.name} is missing")
    values = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in document.items()}
    return config_class(**values)


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type[Any], hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ConfigError(f"{where}: got {_shown(value)}, expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: got {_shown(value)}, expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: got {len(value)} values, expected {len(arguments)}")
        return tuple(_typed(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: got {_shown(value)}, expected {hint.__name__}")
    if hint is not float:
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{where}: got {_shown(value)}, expected a finite number") from error


def _shown(value: Any) -> str:
    """A value of a document, however long or deep, in some words."""
    if isinstance(value, list | tuple | dict):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    shown = repr(value)
    return printable(shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}...")


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
