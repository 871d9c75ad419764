"""The `config.json` of a checkpoint folder: format, configuration, and the digest of the weights. Needs no torch."""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.format_1 import FORMAT_1, in_names_of_format_1, renamed_settings

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT_VERSION = 2
DIGEST = "weights_sha256"
LONGEST_TEXT = 200
_MAX_CONFIG_BYTES = 1 << 24

_Config = TypeVar("_Config")


def load_config(folder: Path | str) -> ModelConfig:
    """Configuration of a checkpoint folder, without its weights.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    return read_config(folder)[1]


def read_config(folder: Path | str) -> tuple[int, ModelConfig, str | None]:
    """Format, configuration, and the digest of the weights where the folder has it."""
    path = Path(folder) / CONFIG_NAME
    document = _read_document(path)
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version not in (FORMAT_1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: got format_version {_shown(version)}, expected {FORMAT_VERSION}, or {FORMAT_1}, which is read too"
        )
    digest = document.get(DIGEST)
    if digest is not None and (not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None):
        raise CheckpointError(f"{path}: {DIGEST}: got {_shown(digest)}, expected the SHA-256 of {WEIGHTS_NAME}")
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
        shown = printable(str(error))[:LONGEST_TEXT]
        raise CheckpointError(f"{path}: not JSON ({shown}); the file is damaged or cut short: copy it again") from error


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
        name = printable(unknown[0])[:LONGEST_TEXT]
        raise ConfigError(f"{where}.{name} is not a setting; it may come from a newer version of this software")
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
    return printable(shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]}...")
