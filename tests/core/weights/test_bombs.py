"""Files that ask for far more than they hold are refused within seconds and little memory, in one line."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 20
SPARE = 1 << 30

READ = f"""
import resource, signal, sys
from maskrcnn_core.errors import UserError
from maskrcnn_core.importers.convert import read_foreign
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {SPARE}, -1))
for path in sys.argv[1:]:
    signal.setitimer(signal.ITIMER_PROF, {SECONDS})
    try:
        read_foreign(path)
        print("read")
    except UserError as error:
        print(str(error).replace(path + ": ", ""))
    signal.setitimer(signal.ITIMER_PROF, 0)
"""


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def nested_key(depth: int) -> bytes:
    """A tuple of twice the same tuple, `depth` times, as a key: its hash takes 2^depth steps."""
    pairs = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))
    return opcodes(b")q\x00", pairs, b"}h" + bytes([depth]) + b"K\x01s")


def shared_dicts(depth: int) -> bytes:
    """A dictionary with twice the same dictionary, `depth` times: 2^depth names."""
    pairs = b"".join(b"}(U\x01ah" + bytes([i]) + b"U\x01bh" + bytes([i]) + b"uq" + bytes([i + 1]) for i in range(depth))
    return opcodes(b"}q\x00", pairs)


def array(shape: bytes) -> bytes:
    return opcodes(
        b"}U\x01wcnumpy.core.multiarray\n_reconstruct\n)R(I1\n(" + shape + b"t",
        b"cnumpy\ndtype\n(U\x02f4tR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI0\nU\x04abcdtbs",
    )


def repeated_texts() -> bytes:
    """One megabyte of text that is made bytes again and again."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    return opcodes(b"]", text + b"0", b"(", b"c_codecs\nencode\n(h\x00U\x06latin1tR" * 5000, b"e")


def archive(*, deflated: bool = False, number: int = 0, size: int = 0) -> bytes:
    found = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(found, "w", kind) as file:
        file.writestr("a/data.pkl", pickle.dumps({"x": 1}) if size == 0 else b"\0" * size)
        for i in range(number):
            file.writestr(f"a/data/{i:01000}", b"")
    return found.getvalue()


def tied_tensors() -> bytes:
    """One storage of a megabyte under 5,000 names: 5 GB as tensors."""
    found = io.BytesIO()
    memory = torch.zeros(1 << 18)
    torch.save({f"backbone.body.{i}.weight": memory for i in range(5000)} | {"rpn.head.x": memory}, found)
    return found.getvalue()


def inner_files() -> bytes:
    """torch's files inside of torch's files."""
    content = b""
    for _ in range(50):
        content = opcodes(b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(content)) + content + b"tR")
    return content


BOMBS: dict[str, Callable[[], bytes]] = {
    "memo 2^27": lambda: opcodes(b"Nr" + struct.pack("<I", 1 << 27)),
    "memo 2^30": lambda: opcodes(b"Nr" + struct.pack("<I", 1 << 30)),
    "memo of digits": lambda: opcodes(b"Np" + b"9" * 4000 + b"\n"),
    "nested key": lambda: nested_key(100),
    "shared dictionaries": lambda: shared_dicts(100),
    "deep lists": lambda: opcodes(b"]" * 200_000, b"a" * 199_999),
    "deep dictionaries": lambda: opcodes(b"}U\x01a" * 100_000, b"N", b"s" * 100_000),
    "deep tuples": lambda: opcodes(b")", b"\x85" * 200_000),
    "long names": lambda: opcodes(b"}X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00}h\x00Nss"),
    "self": lambda: opcodes(b"}q\x00U\x01ah\x00s"),
    "bytes 2^62": lambda: opcodes(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "bytes 2^31": lambda: opcodes(b"B" + struct.pack("<I", (1 << 31) - 1)),
    "bytearray 2^40": lambda: opcodes(b"\x96" + struct.pack("<Q", 1 << 40)),
    "text 2^40": lambda: opcodes(b"\x8d" + struct.pack("<Q", 1 << 40)),
    "frame 2^63": lambda: opcodes(b"\x95" + struct.pack("<Q", 1 << 63)),
    "huge number": lambda: opcodes(b"\x8b" + struct.pack("<I", 1 << 24) + b"\xff" * (1 << 24)),
    "digits": lambda: opcodes(b"L" + b"9" * 1_000_000 + b"L\n"),
    "huge keys": lambda: opcodes(b"}", (b"\x8b" + struct.pack("<I", 4096) + b"\x7f" * 4096 + b"q\x00") + b"Ns"),
    "marks": lambda: opcodes(b"(" * 1_100_000),
    "array of 2^62": lambda: array(b"L4611686018427387904L\n"),
    "array of nothing": lambda: array(b"I0\nL4611686018427387904L\n"),
    "repeated texts": repeated_texts,
    "deflated": lambda: archive(deflated=True, size=1 << 28),
    "many records": lambda: archive(number=17_000),
    "tied tensors": tied_tensors,
    "inner files": inner_files,
    "not torch's zip": lambda: archive().replace(b"data.pkl", b"data.plk"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process, bounded in memory and in time for each file, says of all of them."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [folder / f"{number}.pth" for number in range(len(BOMBS))]
    for path, make in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), f"{list(BOMBS)[len(lines)]}: {done.stderr[-2000:]}"
    return dict(zip(BOMBS, lines, strict=True))


@pytest.mark.parametrize("kind", list(BOMBS))
def test_a_bomb_is_one_line(kind: str, outcomes: dict[str, str]) -> None:
    assert outcomes[kind].startswith(
        ("not readable", "got ", "w: an array", "backbone.body.4.weight: it asks for many times")
    )
    assert outcomes[kind].isprintable()
    assert len(outcomes[kind]) < 500
