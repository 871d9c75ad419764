"""Arrays come out of pickles of every protocol as they went in; whatever else a file names is not built and not run."""

import functools
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.budget import Budget
from maskrcnn_core.weights.pickle_machine import Unbuilt
from maskrcnn_core.weights.source_content import open_content
from maskrcnn_core.weights.source_files import read_source, read_state

ARRAYS: dict[str, np.ndarray] = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "part": np.arange(12, dtype=np.float32).reshape(3, 4)[:, 1:3],
    "half": np.array([0.5, -1.0], dtype=np.float16),
    "big_endian": np.array([1, 2, 3], dtype=">i8"),
    "bool": np.array([True, False]),
    "scalar_array": np.array(3.0, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def written(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def content_of(path: Path) -> Any:
    with open_content(path, Budget.of_file(path.stat().st_size)) as content:
        return content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    extra = {"__author__": "someone", "iteration": np.int64(5), "rate": 0.5, "flag": True, "sizes": (1, [2, None])}
    path = written(tmp_path / "a.pkl", {"model": OrderedDict(ARRAYS), **extra}, protocol)
    content = content_of(path)
    content.pop("model")
    assert content == extra
    tensors = read_state(path)
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].tolist() == array.tolist(), name
        assert tuple(tensors[name].shape) == array.shape
        assert str(tensors[name].dtype).removeprefix("torch.") == array.dtype.name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_in_a_plain_pickle(protocol: int, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "turned": torch.arange(6.0).view(2, 3).t(), "none": torch.zeros(0, 2)}
    read = read_state(written(tmp_path / "a.pkl", tensors, protocol))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


KINDS: dict[str, Tensor] = {
    "double": torch.randn(3, dtype=torch.float64),
    "half": torch.randn(3).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "turned": torch.randn(4, 5).t(),
    "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "part": torch.randn(10, 10)[2:4, 3:],
    "scalar": torch.tensor(3.5),
    "none": torch.zeros(0, 3),
    "count": torch.tensor(7),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "one": torch.ones(1).expand(1, 1),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_every_kind_in_both_of_torchs_formats(old: bool, protocol: int, tmp_path: Path) -> None:
    shared = torch.randn(8)
    tensors = {**KINDS, "tied": shared[:4], "tied too": shared[2:]}
    path = tmp_path / "a.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    read = read_state(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor), name
        assert read[name].dtype == tensor.dtype
        assert read[name].is_contiguous()


def test_arrays_under_numpys_old_names_and_python_2s_text(tmp_path: Path) -> None:
    """numpy before 2 wrote `numpy.core`, Python 2 wrote bytes as text."""
    raw = struct.pack("<2f", 1.5, -2.0)
    for text in (b"U" + bytes([len(raw)]) + raw, b"S'" + repr(raw)[2:-1].encode() + b"'\n"):
        old = b"".join(
            (
                b"}X\x01\x00\x00\x00wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR",
                b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI0\n",
                text,
                b"tbs.",
            )
        )
        (tmp_path / "old.pkl").write_bytes(b"\x80\x02" + old)
        assert read_state(tmp_path / "old.pkl")["w"].tolist() == [1.5, -2.0]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def malicious(folder: Path) -> dict[str, object]:
    """Contents that would make a file."""
    command = f"touch {folder}/made"
    return {
        "at the top": Calls(os.system, command),
        "nested": {"model": {"weight": ARRAYS["float32"], "x": [(1, {"y": Calls(os.system, command)})]}},
        "as a key": {Calls(os.mkdir, f"{folder}/made"): 1},
        "behind an array": [ARRAYS["float32"], Calls(eval, f"open({str(folder / 'made')!r}, 'w')")],
        "partial": functools.partial(os.system, command),
        "an attribute": Calls(getattr, ARRAYS["bool"], "tofile"),
        "torch.load": Calls(torch.load, str(folder / "evil.pkl")),
        "numpy.load": Calls(np.load, str(folder / "evil.pkl")),
    }


@pytest.mark.parametrize("kind", list(malicious(Path("/"))))
@pytest.mark.parametrize("form", ["2", "4", "zip", "old"])
def test_code_is_not_run(kind: str, form: str, tmp_path: Path) -> None:
    content, path = malicious(tmp_path)[kind], tmp_path / "bad.pkl"
    if form in ("zip", "old"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        written(path, content, int(form))
    if kind == "nested":
        file = read_source(path)
        assert set(file.state) == {"weight"}
        assert file.left_out == ("model.x",)
    else:
        with pytest.raises(CheckpointError, match=r"bad\.pkl: got .*, expected a state dict of tensors"):
            read_source(path)
    assert os.listdir(tmp_path) == ["bad.pkl"]


def test_an_object_is_known_by_the_name_of_its_class(tmp_path: Path) -> None:
    content = content_of(written(tmp_path / "a.pkl", {"x": Calls(os.system, "true")}))
    assert isinstance(content["x"], Unbuilt)
    assert content["x"].class_name == f"{os.system.__module__}.system"


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "content",
    [
        opcodes(b"c_codecs\nencode\n", b"(X\x03\x00\x00\x00abcX\x03\x00\x00\x00hextR"),  # another encoding
        opcodes(b"c__builtin__\nbytes\n", b"(J\xff\xff\xff\x7ftR"),  # two thousand million bytes
        opcodes(b"c_codecs\nencode\n", b"}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb"),  # setting an attribute of it
        opcodes(b"cnumpy.core.multiarray\n_reconstruct\n", b")R(I1\n(I2\nt", b"NI0\nU\x04abcdtb"),  # no data type
        opcodes(b"P1\n"),  # a reference outside the file
        opcodes(b"0"),  # takes a value where there is none
        opcodes(b"}]s"),
        opcodes(b"(t"),
        opcodes(b"(" * 100),
        opcodes(b"h\x07"),  # a value that was never made
        opcodes(b"K\x01K\x02a"),  # appends to a number
        opcodes(b"\x82\x01"),  # an extension
        opcodes(b"cos\nsystem\n", b"(X\x04\x00\x00\x00true", b"tR"),
        opcodes(b"(S'true'\nios\nsystem\n"),
        opcodes(b"(cos\nsystem\nS'true'\no"),
        opcodes(b"\xff"),
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ],
)
def test_strange_pickles_fail_cleanly(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pkl: (not readable|got )") as caught:
        read_source(tmp_path / "bad.pkl")
    assert "\n" not in str(caught.value)


def array_pickle(shape: bytes, spec: bytes, raw: bytes) -> bytes:
    return opcodes(
        b"}U\x01wcnumpy.core.multiarray\n_reconstruct\n)R(I1\n" + shape,
        b"cnumpy\ndtype\n(" + spec + b"tR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb",
        b"I0\nU" + bytes([len(raw)]) + raw + b"tbs",
    )


def test_arrays_that_do_not_fit_their_bytes(tmp_path: Path) -> None:
    for name, content, message in (
        ("short", array_pickle(b"(I9\nt", b"U\x02f4", b"\0" * 8), r"w: an array of shape \[9\] whose bytes"),
        ("negative", array_pickle(b"(I-2\nI-1\nt", b"U\x02f4", b"\0" * 8), r"w: an array's shape is no list"),
        ("objects", array_pickle(b"(I1\nt", b"U\x02O8", b"\0" * 8), "w: an array of data type O8"),
        ("records", array_pickle(b"(I1\nt", b"U\x02V8", b"\0" * 8), "w: an array of data type V8"),
    ):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_source(path)
    (tmp_path / "good.pkl").write_bytes(array_pickle(b"(I2\nt", b"U\x02f4", b"\0" * 8))
    assert read_state(tmp_path / "good.pkl")["w"].tolist() == [0.0, 0.0]


class Rebuilt:
    """Pickles as a tensor of its own making."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (torch.arange(2.0).storage(), *self.arguments, False, {})


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("form", ["pickle", "zip", "old"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (100,), (1,)), "reaches past its storage of 2 values"),
        ((1, (2,), (1,)), "reaches past its storage"),
        ((0, (10**9,), (0,)), "repeats the 2 values of its storage"),
        ((0, (10**9, 2), (0, 1)), "repeats the 2 values of its storage"),
        ((0, (2,), (1, 1)), "a damaged tensor"),
        ((-1, (2,), (1,)), "a damaged tensor"),
    ],
)
def test_tensors_that_are_not_in_their_storage(
    arguments: tuple[Any, ...], message: str, form: str, tmp_path: Path
) -> None:
    content, path = {"w": Rebuilt(*arguments)}, tmp_path / "a.pth"
    if form == "pickle":
        written(path, content, 2)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=rf"a\.pth: w: .*{message}"):
        read_source(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_files_cut_short(share: float, tmp_path: Path) -> None:
    content = pickle.dumps({"model": {f"key{i}": np.random.rand(50) for i in range(20)}})
    (tmp_path / "cut.pkl").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: not readable.*copy it again"):
        read_source(tmp_path / "cut.pkl")


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_values_are_named(kind: str, tmp_path: Path) -> None:
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(3, device="meta"),
    }[kind]()
    torch.save({"model": {"good": torch.ones(2), "bad\x1b[31m": tensor}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        read_source(tmp_path / "a.pth")
    assert str(caught.value) == (
        f"{tmp_path}/a.pth: model.bad\\x1b[31m: a {kind} tensor, expected a plain one with values"
    )
    torch.save({"model": {"good": torch.ones(2)}, "beside": tensor}, tmp_path / "a.pth")
    assert set(read_source(tmp_path / "a.pth").state) == {"good"}


def test_whole_numbers_that_are_no_sizes(tmp_path: Path) -> None:
    """Keys that are no text are never compared: equal hashes in thousands would take minutes."""
    prime = 2**61 - 1
    content: dict[Any, Any] = {"w": ARRAYS["float32"], **{i * prime: 1 for i in range(2000)}, (1, (2,)): 3}
    path = written(tmp_path / "a.pkl", content)
    assert set(read_state(path)) == {"w"}
