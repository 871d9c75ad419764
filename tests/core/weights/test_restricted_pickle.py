"""Arrays come out of pickles of every protocol as they went in; whatever else a pickle names is refused, not run."""

import functools
import os
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.restricted_pickle import PickledArray, load_pickle, tensors_of

ARRAYS = {
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    extra = {"__author__": "someone", "iteration": np.int64(5), "rate": 0.5, "flag": True, "sizes": (1, [2, None])}
    content = load_pickle(written(tmp_path / "a.pkl", {"model": OrderedDict(ARRAYS), **extra}, protocol))
    assert isinstance(content, dict)
    tensors = tensors_of(content.pop("model"))
    assert content == extra
    assert tensors is not None
    assert set(tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].tolist() == array.tolist(), name
        assert tuple(tensors[name].shape) == array.shape
        assert str(tensors[name].dtype).removeprefix("torch.") == array.dtype.name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors(protocol: int, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "turned": torch.arange(6.0).view(2, 3).t(), "none": torch.zeros(0, 2)}
    content = load_pickle(written(tmp_path / "a.pkl", tensors, protocol))
    assert isinstance(content, dict)
    read = tensors_of(content)
    assert read is not None
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_arrays_under_numpys_old_names_and_python_2s_text(tmp_path: Path) -> None:
    """numpy before 2 wrote `numpy.core`, Python 2 wrote bytes as text."""
    raw = struct.pack("<2f", 1.5, -2.0)
    old = b"".join(
        (
            b"}X\x01\x00\x00\x00wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR",
            b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI0\n",
            b"U" + bytes([len(raw)]) + raw,
            b"tbs.",
        )
    )
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02" + old)
    content = load_pickle(tmp_path / "old.pkl")
    assert isinstance(content, dict)
    tensors = tensors_of(content)
    assert tensors is not None
    assert tensors["w"].tolist() == [1.5, -2.0]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


def malicious(folder: Path) -> dict[str, tuple[object, str]]:
    """Contents that would make a file, and the name in each that is refused."""
    command = f"touch {folder}/made"
    system = "nt" if sys.platform == "win32" else "posix"
    return {
        "at the top": (Calls(os.system, command), f"{system}.system"),
        "nested": ({"model": {"weight": ARRAYS["float32"], "x": [(1, {"y": Calls(os.system, command)})]}}, "system"),
        "as a key": ({Calls(os.mkdir, f"{folder}/made"): 1}, f"{system}.mkdir"),
        "behind an array": ([ARRAYS["float32"], Calls(eval, f"open({str(folder / 'made')!r}, 'w')")], "eval"),
        "partial": (functools.partial(os.system, command), "functools.partial"),
        "an attribute": (Calls(getattr, ARRAYS["bool"], "tofile"), "getattr"),
        "torch.load": (Calls(torch.load, str(folder / "evil.pkl")), "torch.serialization.load"),
        "numpy.load": (Calls(np.load, str(folder / "evil.pkl")), "numpy"),
    }


@pytest.mark.parametrize("kind", list(malicious(Path("/"))))
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_not_run(kind: str, protocol: int, tmp_path: Path) -> None:
    content, name = malicious(tmp_path)[kind]
    path = written(tmp_path / "bad.pkl", content, protocol)
    with pytest.raises(CheckpointError, match=rf"bad\.pkl: refused, it names \S*{name}.*nothing of it was run"):
        load_pickle(path)
    assert os.listdir(tmp_path) == ["bad.pkl"]


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
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ],
)
def test_strange_pickles_fail_cleanly(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pkl: not readable as a pickle of arrays"):
        load_pickle(tmp_path / "bad.pkl")


def array_pickle(shape: bytes, spec: bytes, raw: bytes) -> bytes:
    return opcodes(
        b"}U\x01wcnumpy.core.multiarray\n_reconstruct\n)R(I1\n" + shape,
        b"cnumpy\ndtype\n(" + spec + b"tR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb",
        b"I0\nU" + bytes([len(raw)]) + raw + b"tbs",
    )


def test_arrays_that_do_not_fit_their_bytes(tmp_path: Path) -> None:
    good = array_pickle(b"(I2\nt", b"U\x02f4", b"\0" * 8)
    for name, content, message in (
        ("short", array_pickle(b"(I9\nt", b"U\x02f4", b"\0" * 8), r"shape \(9,\) whose bytes"),
        ("negative", array_pickle(b"(I-2\nI-1\nt", b"U\x02f4", b"\0" * 8), r"whose bytes do not fill"),
        ("objects", array_pickle(b"(I1\nt", b"U\x02O8", b"\0" * 8), "data type O8"),
        ("records", array_pickle(b"(I1\nt", b"U\x02V8", b"\0" * 8), "data type V8"),
    ):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_pickle(path)
    (tmp_path / "good.pkl").write_bytes(good)
    content = load_pickle(tmp_path / "good.pkl")
    assert isinstance(content, dict)
    assert isinstance(content["w"], PickledArray)
    assert content["w"].tensor().tolist() == [0.0, 0.0]


def test_a_tensor_that_reaches_past_its_storage(tmp_path: Path) -> None:
    class Stolen:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (torch.arange(2.0).storage(), 0, (100,), (1,), False, {})

    with pytest.warns(UserWarning, match="TypedStorage"):
        path = written(tmp_path / "a.pkl", {"w": Stolen()}, 2)
    with pytest.raises(CheckpointError, match="past its storage"):
        load_pickle(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_files_cut_short(share: float, tmp_path: Path) -> None:
    content = pickle.dumps({"model": {f"key{i}": np.random.rand(50) for i in range(20)}})
    (tmp_path / "cut.pkl").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: not readable.*copy it again"):
        load_pickle(tmp_path / "cut.pkl")


def test_mappings_of_other_things_are_no_tensors() -> None:
    assert tensors_of({}) is None
    assert tensors_of({"a": 3}) is None
    assert tensors_of({"a": torch.zeros(2), "b": "text"}) is None
    tensors = tensors_of({"a": torch.ones(2)})
    assert tensors is not None
    assert isinstance(tensors["a"], Tensor)
