"""Random damage: to bytes, to what a JSON document says, to the chunks of a PNG."""

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

# What exporters, hand edits and failed conversions leave in place of a value, and what an attacker would.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.0,
    1.5,
    -0.0,
    2**31 - 1,
    -(2**31),
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    1e7,
    -1e9,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "1",
    "1.0",
    "720",
    "nan",
    "red",
    "../../x.jpg",
    "a\nb\x1b[2J",
    "\ud800",
    "\x00",
    "é" * 300,
    [],
    {},
    [[]],
    [None],
    [1],
    [1, 2, 3],
    [1, 2, 3, 4],
    [[1, 2], [3, 4], [5, 6]],
    [10, 10, 20, 10, 20, 20],
    [[10, 10, 20, 10, 20, 20]],
    ["1", "2", "3", "4"],
    {"size": [64, 96], "counts": "PPYo0"},
    {"size": [64, 96], "counts": [10, 20, 6114]},
    {"size": [96, 64], "counts": [10**9]},
    {"size": [0, 0], "counts": ""},
    {"size": [10**9, 10**9], "counts": "0"},
)


def damaged_bytes(content: bytes, random_: random.Random) -> bytes:
    """A file after a torn copy, a bad disk or a careless editor: 1 to 4 changes."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        _BYTE_CHANGES[random_.randrange(len(_BYTE_CHANGES))](changed, random_)
    return bytes(changed)


def _flip_bit(content: bytearray, random_: random.Random) -> None:
    if content:
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)


def _set_bytes(content: bytearray, random_: random.Random) -> None:
    if content:
        place = random_.randrange(len(content))
        odd = random_.choice((b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80", b"\x00\x00\x00\x00"))
        content[place : place + len(odd)] = odd


def _cut(content: bytearray, random_: random.Random) -> None:
    del content[random_.randint(0, len(content)) :]


def _remove(content: bytearray, random_: random.Random) -> None:
    place = random_.randint(0, len(content))
    del content[place : place + random_.choice((1, 2, 7, 64, 1000))]


def _repeat(content: bytearray, random_: random.Random) -> None:
    place = random_.randint(0, len(content))
    content[place:place] = content[place : place + random_.choice((1, 4, 50, 500))]


def _insert_noise(content: bytearray, random_: random.Random) -> None:
    place = random_.randint(0, len(content))
    content[place:place] = random_.randbytes(random_.choice((1, 3, 16, 200)))


def _append(content: bytearray, random_: random.Random) -> None:
    content += random_.choice((b"\x00" * 100, random_.randbytes(30), bytes(content[:200])))


_BYTE_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bit,
    _flip_bit,
    _set_bytes,
    _set_bytes,
    _cut,
    _remove,
    _repeat,
    _insert_noise,
    _append,
)


def damaged_json(document: Any, random_: random.Random) -> bytes:
    """The document with 1 to 3 entries changed, removed, doubled or exchanged; sometimes its text damaged instead."""
    if random_.random() < 0.15:
        return damaged_bytes(json.dumps(document).encode(), random_)
    changed = copy.deepcopy(document)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        places = _places(changed)
        if not places:
            return _encoded(random_.choice(ODD_VALUES), random_)
        holder, key = random_.choice(places)
        _change(holder, key, random_)
    return _encoded(changed, random_)


def _encoded(document: Any, random_: random.Random) -> bytes:
    text = json.dumps(document, ensure_ascii=random_.random() < 0.9)
    encoding = random_.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in the document; long lists of numbers count with a few of theirs."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))[:20]
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _change(holder: Any, key: Any, random_: random.Random) -> None:
    what = random_.random()
    if what < 0.6:
        holder[key] = copy.deepcopy(random_.choice(ODD_VALUES))
    elif what < 0.75:
        del holder[key]
    elif what < 0.85 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif what < 0.95 and isinstance(holder[key], int | float):
        holder[key] = random_.choice((str(holder[key]), float(holder[key]), -holder[key], holder[key] * 1000))
    else:
        other = random_.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]


def damaged_png(content: bytes, random_: random.Random) -> bytes:
    """A PNG with a chunk changed, removed, doubled, moved or invented, its checksum right again."""
    chunks = []
    place = 8
    while place + 8 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = random_.randrange(len(chunks))
    name, body = chunks[number]
    what = random_.randrange(6)
    if what == 0:
        chunks[number] = (name, damaged_bytes(body, random_))
    elif what == 1:
        del chunks[number]
    elif what == 2:
        chunks.insert(random_.randint(0, len(chunks)), (name, body))
    elif what == 3:
        chunks.insert(0, chunks.pop(number))
    elif what == 4:
        other = random_.choice(
            (b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"IDAT")
        )
        noise = random_.choice((b"", b"a\0\0" + zlib.compress(b"x" * 2_000_000), random_.randbytes(100)))
        chunks.insert(random_.randint(0, len(chunks)), (other, noise))
    else:
        sides = [random_.choice((0, 1, 7, 64, 5000, 40_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        header = struct.pack(">II", *sides) + chunks[0][1][8:]
        chunks.insert(random_.choice((0, 1)), (b"IHDR", header))
    return content[:8] + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
