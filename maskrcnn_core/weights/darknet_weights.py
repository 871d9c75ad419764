"""Darknet's .weights files: a header, then the numbers of all layers in a row, without names or sizes.

Which numbers belong to what is known from the description of the network only, so that a file that doesn't belong to it
is told by its length. The header has three int32 (major, minor, revision) and how many images were seen, in 8 bytes
since version 0.2 and in 4 before.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.darknet_config import DarknetLayer, window
from maskrcnn_core.weights.soundness import check_finite

_VERSION_BYTES = 12
_TRANSPOSED = 1000  # versions from here on were written by a program that turned the matrices of connected layers
_FLOAT = np.dtype("<f4")

Shape = tuple[int, ...]


def read_darknet_weights(path: Path | str, layers: Sequence[DarknetLayer]) -> dict[str, Tensor]:
    """The tensors of a .weights file: `{index of the layer}.{bias, weight, scale, mean or variance}`.

    Args:
        path: the file.
        layers: of the description that belongs to it, see `darknet_layers`.

    Returns:
        Convolutions' weights as [out, in / groups, side, side], of connected layers as [out, in], of locally connected
        ones as [cells, out, in, side, side]; biases [out] or, where local, [out, cells].

    Raises:
        CheckpointError: the file is missing, cut short, longer than the layers' numbers, or no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{printable(str(path))}: no such file, expected weights of Darknet (.weights)")
    parts = [part for index, layer in enumerate(layers) for part in _parts(index, layer)]
    wanted = sum(math.prod(shape) for _, shape in parts)
    size = file.stat().st_size
    with file.open("rb") as opened:
        offset, transposed = _header(opened.read(_VERSION_BYTES), path)
        held, rest = divmod(size - offset, _FLOAT.itemsize)
        if held != wanted or rest:
            raise CheckpointError(
                f"{path}: it has {max(held, 0):,} numbers{' and a part of one' if rest else ''}, where the layers of "
                f"its description take {wanted:,}: it is cut short, or the .cfg is another network's"
            )
        opened.seek(offset)
        numbers = np.fromfile(opened, _FLOAT, wanted)
    values = torch.from_numpy(numbers.astype(np.float32, copy=False))
    found = {name: value.view(shape) for (name, shape), value in zip(parts, _split(values, parts), strict=True)}
    return _turned(found, layers) if transposed else found


def read_first_convolutions(path: Path | str, kernels: Sequence[Shape]) -> list[dict[str, Tensor]]:
    """The first convolutions of a .weights file, all with batch norm; what follows them is left out.

    Such files are a classifier's, or the beginning of one that Darknet's `partial` has cut (darknet19_448.conv.23).

    Args:
        path: the file.
        kernels: [out, in, side, side] of each convolution.

    Returns:
        Of each `bias`, `scale`, `mean`, `variance` and `weight`.

    Raises:
        CheckpointError: the file is missing, cut short, no such file, or holds numbers that are not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{printable(str(path))}: no such file, expected weights of Darknet (.weights)")
    wanted = sum(4 * kernel[0] + math.prod(kernel) for kernel in kernels)
    with file.open("rb") as opened:
        offset, _ = _header(opened.read(_VERSION_BYTES), path)
        held = (file.stat().st_size - offset) // _FLOAT.itemsize
        if held < wanted:
            raise CheckpointError(
                f"{path}: it has {max(held, 0):,} numbers, where the first {len(kernels)} convolutions take "
                f"{wanted:,}: it is cut short, or another network's"
            )
        opened.seek(offset)
        left = torch.from_numpy(np.fromfile(opened, _FLOAT, wanted).astype(np.float32, copy=False))
    found = []
    for kernel in kernels:
        sizes = (kernel[0],) * 4 + (math.prod(kernel),)
        *norm, weight, left = left.split((*sizes, len(left) - sum(sizes)))
        names = dict(zip(("bias", "scale", "mean", "variance"), norm, strict=True))
        found.append({**names, "weight": weight.view(kernel)})
        check_finite(found[-1], str(path))
    return found


def _split(values: Tensor, parts: Sequence[tuple[str, Shape]]) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = values.split([math.prod(shape) for _, shape in parts])
    return pieces


def _header(start: bytes, path: Path | str) -> tuple[int, bool]:
    """How long it is, and whether connected layers are transposed."""
    if len(start) < _VERSION_BYTES:
        raise CheckpointError(f"{path}: it has {len(start)} bytes, expected weights of Darknet")
    major, minor, _ = (int(number) for number in np.frombuffer(start, "<i4"))
    if min(major, minor) < 0 or max(major, minor) > 2 * _TRANSPOSED:
        raise CheckpointError(f"{path}: it begins with version {major}.{minor}, so it is no file of Darknet's weights")
    transposed = max(major, minor) > _TRANSPOSED
    return _VERSION_BYTES + (8 if major * 10 + minor >= 2 and max(major, minor) < _TRANSPOSED else 4), transposed


def _parts(index: int, layer: DarknetLayer) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a layer's tensors, in the file's order."""
    channels, *_ = layer.input_size
    out, height, width = layer.output_size
    if layer.kind == "convolutional":
        groups = layer.section.number("groups", 1)
        if groups < 1 or channels % groups or out % groups:
            raise CheckpointError(f"{layer.section}: groups = {groups} do not divide {channels} and {out} channels")
        side = window(layer.section)[1]
        yield f"{index}.bias", (out,)
        yield from _norm(index, layer)
        yield f"{index}.weight", (out, channels // groups, side, side)
    elif layer.kind == "connected":
        yield f"{index}.bias", (out,)
        yield f"{index}.weight", (out, math.prod(layer.input_size))
        yield from _norm(index, layer)
    elif layer.kind == "local":
        side = window(layer.section)[1]
        yield f"{index}.bias", (out, height * width)
        yield f"{index}.weight", (height * width, out, channels, side, side)


def _norm(index: int, layer: DarknetLayer) -> Iterator[tuple[str, Shape]]:
    if layer.section.number("batch_normalize", 0):
        for part in ("scale", "mean", "variance"):
            yield f"{index}.{part}", (layer.output_size[0],)


def _turned(found: dict[str, Tensor], layers: Sequence[DarknetLayer]) -> dict[str, Tensor]:
    for index, layer in enumerate(layers):
        if layer.kind == "connected":
            weight = found[f"{index}.weight"]
            found[f"{index}.weight"] = weight.view(weight.shape[1], weight.shape[0]).t().contiguous()
    return found
