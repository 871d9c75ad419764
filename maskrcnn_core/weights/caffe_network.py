"""Caffe's networks: layers of a description (.prototxt), and the numbers of each in a file of weights (.caffemodel).

Weights lie in a NetParameter message, each layer under its name, as BlobProto messages. The fields are those of Caffe's
caffe.proto; layers of before 2014 (`layers` instead of `layer`) are read for their weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.protobuf import (
    Value,
    as_bytes,
    as_signed,
    as_text,
    packed_numbers,
    packed_varints,
    read_fields,
)
from maskrcnn_core.weights.prototxt import TextMessage, read_prototxt

_MAX_LAYERS = 2000
_MAX_DIMENSIONS = 8
_MAX_SIDE = 1 << 20
# Number of the list of layers in a NetParameter -> numbers of a layer's name and of its blobs.
_LAYER_FIELDS = {100: (1, 7), 2: (4, 6)}


@dataclass(frozen=True)
class CaffeLayer:
    """A layer.

    Attributes:
        name, kind: its own, and Caffe's word for what it does, such as `Convolution`.
        inputs: indices of the layers whose outputs it takes, -1 = the image. A layer that works in place takes what the
            one before it left under the same name.
        options: its message.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    options: TextMessage

    def settings(self, name: str) -> TextMessage:
        """One of its messages, such as `convolution_param`."""
        return self.options.message(name)

    def __str__(self) -> str:
        return f"layer {printable(self.name)[:40]!r} ({printable(self.kind)[:20]}, line {self.options.line})"


@dataclass(frozen=True)
class CaffeNetwork:
    """A description.

    Attributes:
        input_size: channels, height, width.
        layers: those of the test phase, in their order.
    """

    input_size: tuple[int, int, int]
    layers: tuple[CaffeLayer, ...]


def read_caffe_network(path: Path | str) -> CaffeNetwork:
    """The network of a .prototxt file.

    Raises:
        CheckpointError: the file is missing, or no description of a network with one image as its input.
    """
    message = read_prototxt(path)
    try:
        return _network(message)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_caffe_weights(path: Path | str) -> dict[str, Tensor]:
    """The numbers of a .caffemodel file, float32, as `LAYER.0`, `LAYER.1` and so on.

    Raises:
        CheckpointError: the file is missing, damaged, or has no weights.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file, expected Caffe's weights (.caffemodel)")
    budget = Budget.of_file(file.stat().st_size)
    try:
        found = _weights(memoryview(file.read_bytes()), budget)
    except FileFault as error:
        raise CheckpointError(
            f"{path}: it is damaged, or no file of Caffe's weights: {printable(str(error))}"
        ) from error
    if not found:
        raise CheckpointError(f"{path}: it has no layer with weights, as Caffe's files of weights (.caffemodel) have")
    return found


def _network(message: TextMessage) -> CaffeNetwork:
    written = [layer for layer in message.messages("layer") if _is_for_test(layer)]
    if not written:
        raise CheckpointError("it has no `layer { ... }`, as Caffe's descriptions of networks have")
    if len(written) > _MAX_LAYERS:
        raise CheckpointError(f"it has {len(written)} layers, expected at most {_MAX_LAYERS}")
    inputs = [layer for layer in written if layer.text("type") == "Input"]
    sizes = [message.message("input_shape").texts("dim") or message.texts("input_dim")]
    sizes += [layer.message("input_param").message("shape").texts("dim") for layer in inputs]
    names = [*message.texts("input"), *(name for layer in inputs for name in layer.texts("top"))]
    size = next((size for size in sizes if size), ())
    if (
        len(names) != 1
        or len(size) != 4
        or not all(side.isdecimal() and 0 < int(side[:9]) <= _MAX_SIDE for side in size)
    ):
        raise CheckpointError(
            "it has no input of four sizes (images, channels, height, width), as a network for use has"
        )
    layers = _connected([layer for layer in written if layer.text("type") != "Input"], names[0])
    return CaffeNetwork((int(size[1]), int(size[2]), int(size[3])), layers)


def _is_for_test(layer: TextMessage) -> bool:
    """Whether a layer is there when a network is used."""
    phases = [rule.text("phase") for rule in layer.messages("include")]
    return not any(phase == "TRAIN" for phase in phases)


def _connected(written: Sequence[TextMessage], image: str) -> tuple[CaffeLayer, ...]:
    """The layers with the numbers of those that they work on; without dropout, which does nothing in use."""
    made: dict[str, int] = {image: -1}
    layers: list[CaffeLayer] = []
    for message in written:
        name, kind = message.text("name"), message.text("type")
        absent = [bottom for bottom in message.texts("bottom") if bottom not in made]
        if absent or not name or not kind:
            what = (
                f"bottom {printable(absent[0])[:40]!r}, which nothing before it makes" if absent else "no name or type"
            )
            raise CheckpointError(f"layer of line {message.line}: {what}")
        inputs = tuple(made[bottom] for bottom in message.texts("bottom"))
        if kind != "Dropout":
            layers.append(CaffeLayer(name, kind, inputs, message))
        for top in message.texts("top"):
            made[top] = len(layers) - 1 if kind != "Dropout" or not inputs else inputs[0]
    return tuple(layers)


def _weights(content: memoryview, budget: Budget) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, value in read_fields(content, budget):
        if number not in _LAYER_FIELDS:
            continue
        of_name, of_blobs = _LAYER_FIELDS[number]
        fields = list(read_fields(as_bytes(value), budget))
        name = "".join(as_text(inner) for field, inner in fields if field == of_name)
        blobs = [as_bytes(inner) for field, inner in fields if field == of_blobs]
        for index, blob in enumerate(blobs):
            key = f"{name}.{index}"
            if key in found:
                raise FileFault(f"two layers have the name {name[:100]}")
            found[key] = _blob(blob, name, budget)
    return found


def _blob(message: memoryview, name: str, budget: Budget) -> Tensor:
    """A BlobProto: its shape, in one of two forms, and its numbers as floats or doubles."""
    old: dict[int, int] = {}
    shape: tuple[int, ...] | None = None
    values: Mapping[int, list[Value]] = {5: [], 8: []}
    for number, value in read_fields(message, budget):
        if number in (1, 2, 3, 4):
            old[number] = as_signed(value)
        elif number == 7:
            dims = [
                side
                for field, inner in read_fields(as_bytes(value), budget)
                if field == 1
                for side in packed_varints(inner, budget)
            ]
            shape = tuple(dims)
        elif number in values:
            values[number].append(value)
    sides = tuple(old.get(number, 1) for number in (1, 2, 3, 4)) if shape is None else shape
    if len(sides) > _MAX_DIMENSIONS or any(side < 0 for side in sides):
        raise FileFault(f"{name[:100]} has a shape {list(sides[: _MAX_DIMENSIONS + 1])}")
    count = math.prod(sides)
    budget.spend_bytes(4 * count)
    parts = [packed_numbers(value, "<f4") for value in values[5]] + [
        packed_numbers(value, "<f8") for value in values[8]
    ]
    numbers = np.concatenate([np.zeros(0, "<f4"), *parts])
    if len(numbers) != count:
        raise FileFault(f"{name[:100]} has {len(numbers):,} numbers for the shape {list(sides)}")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what is not finite is refused by name where weights are checked
        return torch.from_numpy(numbers.astype(np.float32).reshape(sides))
