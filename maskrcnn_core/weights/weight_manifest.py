"""TensorFlow.js's weights: a JSON manifest that names tensors, and binary files beside it that hold them in a row.

The manifest is a list of groups, or lies in a `model.json` under `weightsManifest`. A group has `paths`, files that
are one after the other the bytes of its `weights`: each with name, shape and dtype, and with `quantization` where a
value is stored as a whole number q and means `q * scale + min`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.weights.budget import Budget, FileFault

_MAX_JSON = 1 << 23
_MAX_DIMENSIONS = 8
_MAX_FILES = 1000
_MOST = 1e30
_STORED = {"float32": "<f4", "int32": "<i4", "uint8": "u1", "bool": "u1"}
_QUANTISED = {"uint8": "u1", "uint16": "<u2"}


def is_manifest(start: bytes) -> bool:
    """Whether a file begins as JSON."""
    return start.lstrip()[:1] in (b"[", b"{")


def read_manifest(path: Path) -> dict[str, Tensor]:
    """The tensors of a manifest by name: float32, or int32 where they are whole numbers.

    Raises:
        FileFault: it is no manifest, a file is missing, or files and shapes contradict each other.
    """
    if path.stat().st_size > _MAX_JSON:
        raise FileFault(f"its JSON has more than {_MAX_JSON >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileFault("it is no JSON") from error
    groups = document.get("weightsManifest") if isinstance(document, dict) else document
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise FileFault("it is JSON, but no manifest of weights: expected a list of groups with paths and weights")
    named = [file for group in groups for file in _listed(group, "paths")]
    if any(named.count(file) > 1 for file in named[:_MAX_FILES]) or len(named) > _MAX_FILES:
        raise FileFault(f"it names a file twice, or more than {_MAX_FILES} of them")
    found: dict[str, Tensor] = {}
    for group in groups:
        for name, tensor in _group(group, path.parent):
            if name in found:
                raise FileFault(f"two weights have the name {name[:100]}")
            found[name] = tensor
    return found


def _group(group: dict[str, Any], folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = [_file_beside(folder, name) for name in _listed(group, "paths")]
    size = sum(file.stat().st_size for file in files)
    budget, start = Budget.of_file(size), 0
    content = memoryview(b"".join(file.read_bytes() for file in files))
    for entry in _listed(group, "weights"):
        budget.spend_step()
        name, shape, stored = _described(entry)
        end = start + math.prod(shape) * stored.itemsize
        if end > size:
            raise FileFault(f"{name[:100]} of shape {list(shape)} ends behind the {size:,} bytes of its files")
        budget.spend_bytes(math.prod(shape) * 4)
        values = _meant(np.frombuffer(content[start:end], stored), entry)
        yield name, torch.from_numpy(values.reshape(shape))
        start = end
    if start != size:
        raise FileFault(f"its files have {size - start:,} bytes more than its weights")


def _listed(group: dict[str, Any], key: str) -> list[Any]:
    entries = group.get(key)
    if not isinstance(entries, list) or not entries:
        raise FileFault(f"a group has no list of {key}")
    return entries


def _file_beside(folder: Path, name: object) -> Path:
    """A file of a group: a plain name, so that a manifest reaches nothing but its own folder."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise FileFault(f"it names the file {str(name)[:100]!r}, expected one beside it")
    file = folder / name
    if not file.is_file():
        raise FileFault(f"the file {name[:100]!r} is not beside it")
    return file


def _described(entry: object) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    """Name, shape, and how the numbers of a weight are stored."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise FileFault("a weight without a name")
    name, shape = entry["name"], entry.get("shape")
    sides = shape if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [None]
    if not all(type(side) is int and 0 <= side < 1 << 31 for side in sides):
        raise FileFault(f"{name[:100]} has a shape that is no list of whole numbers")
    quantised = entry.get("quantization")
    stored = _STORED.get(str(entry.get("dtype")))
    if isinstance(quantised, dict):
        stored = _QUANTISED.get(str(quantised.get("dtype")))
    if stored is None:
        raise FileFault(f"{name[:100]} has a kind of numbers that is not read; expected float32, int32, uint8, uint16")
    return name, tuple(sides), np.dtype(stored)


def _meant(stored: NDArray[Any], entry: dict[str, Any]) -> NDArray[Any]:
    """What stored numbers stand for, computed in float64 as JavaScript does."""
    is_whole = entry.get("dtype") != "float32"
    if not isinstance(entry.get("quantization"), dict):
        return stored.astype(np.int32 if is_whole else np.float32)
    scale, least = (entry["quantization"].get(key) for key in ("scale", "min"))
    if not all(isinstance(number, int | float) and abs(number) < _MOST for number in (scale, least)):
        raise FileFault(f"{entry['name'][:100]} is quantised without scale and min")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what is not finite is refused by name where weights are checked
        values = stored.astype(np.float64) * float(scale) + float(least)
        return values.round().astype(np.int32) if is_whole else values.astype(np.float32)
