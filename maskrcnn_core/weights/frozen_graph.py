"""TensorFlow's frozen graphs (`frozen_inference_graph.pb`): their nodes, and the tensors of their constants.

A frozen graph is a GraphDef message whose variables have become `Const` nodes, each a tensor in the attribute `value`.
Only what is asked for is read: names, kinds, inputs and attributes of nodes, and numbers of constants. The fields are
those of graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto of TensorFlow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

_MAX_DIMENSIONS = 8
_CONST = "Const"

# DataType of types.proto -> what lies in `tensor_content`, and the field of single values with how they lie there.
_FLOAT_TYPES = {1: ("<f4", 5), 2: ("<f8", 6)}
_WHOLE_TYPES = {3: ("<i4", 7), 4: ("u1", 7), 5: ("<i2", 7), 6: ("i1", 7), 9: ("<i8", 10), 10: ("u1", 11)}
_TYPES = {**_FLOAT_TYPES, **_WHOLE_TYPES, 19: ("<f2", 13)}
_HALF = 19


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph.

    Attributes:
        name: path-like, unique in the graph.
        operation: such as `Conv2D` or `Const`.
        inputs: names of nodes; `name:1` is a further output, `^name` no value but an order.
        attributes: messages of the kind AttrValue by name, unread.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    attributes: dict[str, memoryview] = field(repr=False)


def is_graph(start: bytes) -> bool:
    """Whether a file begins as a GraphDef: with a node, whose first field is its name."""
    view = memoryview(start)
    try:
        number, position = _field_start(view, 0)
        inner, name_start = _field_start(view, position)
    except (FileFault, IndexError):
        return False
    return (number, inner) == (1, 1) and start[name_start : name_start + 1].isascii() and len(start) > name_start


def read_graph(content: memoryview, budget: Budget) -> Iterator[GraphNode]:
    """The nodes of a GraphDef, in the file's order.

    Raises:
        FileFault: it is damaged, or no GraphDef.
    """
    for number, value in read_fields(content, budget):
        if number == 1:
            yield _node(as_bytes(value), budget)


def constants(content: memoryview, budget: Budget) -> dict[str, Tensor]:
    """All numbers of the graph that are constant, by the names of their nodes; texts are passed over.

    Raises:
        FileFault: it is damaged, a tensor's values do not fill its shape, or two nodes have one name.
    """
    found: dict[str, Tensor] = {}
    for node in read_graph(content, budget):
        if node.operation != _CONST:
            continue
        tensor = constant_of(node, budget)
        if node.name in found:
            raise FileFault(f"two nodes have the name {node.name[:100]}")
        if tensor is not None:
            found[node.name] = tensor
    return found


def constant_of(node: GraphNode, budget: Budget) -> Tensor | None:
    """The tensor of a `Const` node, in a copy that the budget pays for; None where it holds text or the like.

    Raises:
        FileFault: it has no value, or one whose numbers do not fill its shape.
    """
    if "value" not in node.attributes:
        raise FileFault(f"the constant {node.name[:100]} has no value")
    for number, value in read_fields(node.attributes["value"], budget):
        if number == 8:
            try:
                return _tensor(as_bytes(value), budget)
            except FileFault as error:
                raise FileFault(f"the constant {node.name[:100]}: {error}") from error
    raise FileFault(f"the constant {node.name[:100]} has a value that is no tensor")


def _field_start(view: memoryview, position: int) -> tuple[int, int]:
    """Number of a field of bytes that begins here, and where its bytes begin."""
    key = view[position]
    if key & 7 != 2:
        raise FileFault("no field of bytes")
    position += 1
    while view[position] >= 128:
        position += 1
    return key >> 3, position + 1


def _node(message: memoryview, budget: Budget) -> GraphNode:
    name, operation, inputs = "", "", []
    attributes: dict[str, memoryview] = {}
    for number, value in read_fields(message, budget):
        if number == 1:
            name = as_text(value)
        elif number == 2:
            operation = as_text(value)
        elif number == 3:
            inputs.append(as_text(value))
        elif number == 5:
            entry = dict(read_fields(as_bytes(value), budget))
            attributes[as_text(entry.get(1, memoryview(b"")))] = as_bytes(entry.get(2, memoryview(b"")))
    if not name or not operation:
        raise FileFault("a node has no name, or no operation")
    return GraphNode(name, operation, tuple(inputs), attributes)


def _tensor(message: memoryview, budget: Budget) -> Tensor | None:
    """A TensorProto: its bytes, or single values of which the last one fills what is left of the shape."""
    kind, raw = 0, memoryview(b"")
    shape: tuple[int, ...] = ()
    fields: list[tuple[int, Value]] = []
    for number, value in read_fields(message, budget):
        if number == 1:
            kind = as_signed(value)
        elif number == 2:
            shape = _shape(as_bytes(value), budget)
        elif number == 4:
            raw = as_bytes(value)
        else:
            fields.append((number, value))
    if kind not in _TYPES:
        return None
    stored, of_field = _TYPES[kind]
    dtype, count = np.dtype(stored), math.prod(shape)
    budget.spend_bytes(count * dtype.itemsize)
    if len(raw):
        if len(raw) != count * dtype.itemsize:
            raise FileFault(f"{len(raw):,} bytes do not fill the shape {list(shape)}")
        values = np.frombuffer(raw, dtype)
    else:
        values = _single_values([value for number, value in fields if number == of_field], kind, budget)
        if len(values) > count:
            raise FileFault(f"{len(values):,} values for the shape {list(shape)}")
        rest = count - len(values)
        values = np.pad(values, (0, rest), mode="edge") if len(values) else np.zeros(count, dtype)
    return torch.from_numpy(np.array(values.astype(dtype.newbyteorder("="), copy=False).reshape(shape), order="C"))


def _single_values(entries: list[Value], kind: int, budget: Budget) -> NDArray[np.generic]:
    """`float_val`, `int_val` and so on: packed or one by one."""
    stored, _ = _TYPES[kind]
    if kind in _FLOAT_TYPES:
        return np.concatenate([np.zeros(0, stored), *(packed_numbers(entry, stored) for entry in entries)])
    whole = [number for entry in entries for number in packed_varints(entry, budget)]
    if kind == _HALF:  # the bits of a half in an int32
        return np.array([number & 0xFFFF for number in whole], np.uint16).view(np.float16)
    try:
        return np.array(whole, np.int64).astype(stored, casting="unsafe")
    except OverflowError as error:
        raise FileFault("a whole number that does not fit 64 bits") from error


def _shape(message: memoryview, budget: Budget) -> tuple[int, ...]:
    """A TensorShapeProto whose sides are all known."""
    sides = []
    for number, value in read_fields(message, budget):
        if number == 2:
            dimension = dict(read_fields(as_bytes(value), budget))
            sides.append(as_signed(dimension.get(1, 0)))
    if len(sides) > _MAX_DIMENSIONS or any(side < 0 for side in sides):
        raise FileFault(f"a shape {sides[: _MAX_DIMENSIONS + 1]}")
    return tuple(sides)
