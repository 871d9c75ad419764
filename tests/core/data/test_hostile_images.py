"""Files made to cost more than their pixels, or to hide what they cost, and sound ones with all that may stand beside
pixels. Each is decoded in a process of its own, whose memory is looked at."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

LIMIT = 1_000_000
SIDE = 10_000  # of what is claimed: 100 million pixels, no process may hold them here
HEIGHT, WIDTH = 24, 40
MEGABYTES = 60  # above the idle process; a file is at most a third of it

PICTURE = np.kron(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))


def saved(name: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PICTURE)).save(buffer, name, **options)
    return buffer.getvalue()


# ---- PNG


def chunk(name: bytes, content: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ wrong)


def ihdr(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))


ROWS = b"".join(b"\0" + row.tobytes() for row in PICTURE)
PIXELS = zlib.compress(ROWS)
ZEROS = zlib.compress(b"\0" * (SIDE + 1) * SIDE, 9)
TEXT = zlib.compress(b"x" * 30_000_000, 9)
END = chunk(b"IEND", b"")


def png(*chunks: bytes, header: bytes | None = None, pixels: bytes | None = None, behind: bytes = b"") -> bytes:
    """A PNG with chunks before its pixels, and behind."""
    body = chunk(b"IDAT", PIXELS) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + (header or ihdr(WIDTH, HEIGHT)) + b"".join(chunks) + body + behind + END


GREY = {"kind": 0}
PNGS: dict[str, tuple[bytes, str]] = {
    "two headers": (png(header=ihdr(10, 10, **GREY) + ihdr(SIDE, SIDE, **GREY), pixels=chunk(b"IDAT", ZEROS)), "two"),
    "two headers, the large one first": (
        png(header=ihdr(SIDE, SIDE, **GREY) + ihdr(10, 10, **GREY), pixels=chunk(b"IDAT", ZEROS)),
        "unreadable",
    ),
    "a header behind the pixels": (png(behind=ihdr(SIDE, SIDE, **GREY)), "two header chunks"),
    "a text before the header": (png(header=chunk(b"tEXt", b"a\0b") + ihdr(SIDE, SIDE)), "no header chunk"),
    "larger than allowed": (png(header=ihdr(SIDE, SIDE, **GREY), pixels=chunk(b"IDAT", ZEROS)), "too_large"),
    "the largest number": (png(header=ihdr(2**31 - 1, 2**31 - 1)), "too_large"),
    "no width": (png(header=ihdr(0, 5)), "its size is 0 x 5"),
    "more data than pixels": (
        png(pixels=chunk(b"IDAT", zlib.compress(PICTURE.tobytes() * 20_000, 9))),
        "unreadable|ok",
    ),
    "a million pixels in a hundred bytes": (png(header=ihdr(1000, 1000)), "too few for its 1000 x 1000"),
    "pixels with a wrong checksum": (png(pixels=chunk(b"IDAT", PIXELS, wrong=1)), "checksum of its IDAT"),
    "a palette with a wrong checksum": (png(chunk(b"PLTE", b"abc", wrong=1)), "checksum of its PLTE"),
    "no pixels": (png(pixels=b""), "unreadable"),
    "text of 30 MB": (png(chunk(b"zTXt", b"a\0\0" + TEXT)), "ok"),
    "text of 30 MB behind the pixels": (png(behind=chunk(b"zTXt", b"a\0\0" + TEXT)), "ok"),
    "international text of 30 MB": (png(chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT)), "ok"),
    "profile of 30 MB": (png(chunk(b"iCCP", b"a\0\0" + TEXT)), "ok"),
    "profile of 30 MB behind the pixels": (png(behind=chunk(b"iCCP", b"a\0\0" + TEXT)), "ok"),
    "a hundred texts of 1 MB": (png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 1_000_000))] * 100), "ok"),
    "plain texts of 15 MB": (png(*[chunk(b"tEXt", b"a\0" + b"x" * 1_500_000)] * 10), "ok"),
    "EXIF of 15 MB": (png(chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(15_000_000))), "ok"),
    "a damaged text": (png(chunk(b"zTXt", b"a\0\0not deflated"), chunk(b"tEXt", b"a", wrong=9)), "ok"),
    "a damaged profile behind the pixels": (png(behind=chunk(b"iCCP", b"a\0\0not deflated", wrong=9)), "ok"),
    "chunks that nobody knows": (png(chunk(b"ABCD", b"x" * 99), chunk(b"abcd", b"", wrong=1)), "ok"),
    "an animation's control": (png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), "ok"),
    "pixels in many chunks": (png(pixels=b"".join(chunk(b"IDAT", PIXELS[k : k + 7]) for k in range(0, 9999, 7))), "ok"),
    "bytes behind the end": (png() + b"x" * 100, "ok"),
}

# ---- JPEG

JPEG = saved("JPEG", quality=90)
_FRAME = JPEG.index(b"\xff\xc0")
_FRAME_END = _FRAME + 2 + int.from_bytes(JPEG[_FRAME + 2 : _FRAME + 4], "big")
_SCAN = JPEG.index(b"\xff\xda")


def sized(width: int, height: int, jpeg: bytes = JPEG) -> bytes:
    place = jpeg.index(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.index(b"\xff\xc2")
    return jpeg[: place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9 :]


def behind_ff00() -> bytes:
    """A large picture where a reader of segments takes the bytes for one of unknown kind, then a small frame."""
    body = sized(SIDE, SIDE)[2:-2]
    return JPEG[:2] + b"\xff\x00" + struct.pack(">H", 2 + len(body)) + body + JPEG[_FRAME:_FRAME_END] + b"\xff\xd9"


def with_scans(number: int) -> bytes:
    progressive = saved("JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    return progressive[:-2] + progressive[last:-2] * number + b"\xff\xd9"


def app(number: int, content: bytes) -> bytes:
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", 2 + len(content)) + content


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 600, 3), dtype=np.uint8))
NOISY = saved("JPEG", NOISE)
PROGRESSIVE = saved("JPEG", NOISE, progressive=True)
PROFILE = b"".join(app(2, b"ICC_PROFILE\0" + bytes([k, 255]) + b"x" * 65_000) for k in range(1, 255))
JPEGS: dict[str, tuple[bytes, str]] = {
    "a picture behind FF 00": (behind_ff00(), "too_large|two frame headers"),
    "fill bytes before the frame": (sized(SIDE, SIDE).replace(b"\xff\xc0", b"\xff" * 9 + b"\xc0", 1), "too_large"),
    "fill bytes in a sound file": (JPEG.replace(b"\xff\xc0", b"\xff" * 9 + b"\xc0", 1), "ok"),
    "bytes between segments": (JPEG.replace(b"\xff\xc0", b"junk\xff\x00\xff\xc0", 1), "ok"),
    "a second frame header": (
        JPEG[:_FRAME_END] + sized(SIDE, SIDE)[_FRAME:_FRAME_END] + JPEG[_FRAME_END:],
        "two frame headers",
    ),
    "a second picture's start": (JPEG[:2] + JPEG, "before its picture begins"),
    "a frame header behind the scan": (JPEG[:-2] + sized(SIDE, SIDE)[_FRAME:_FRAME_END] + b"\xff\xd9", "unreadable|ok"),
    "a large thumbnail": (JPEG[:2] + app(1, b"Exif\0\0" + sized(SIDE, SIDE)[:5000]) + JPEG[2:], "ok"),
    "larger than allowed": (sized(SIDE, SIDE), "too_large"),
    "the largest number": (sized(65_535, 65_535), "too_large"),
    "no height": (sized(WIDTH, 0), "its size is 40 x 0"),
    "a million pixels in a hundred bytes": (sized(1000, 1000), "too few for its 1000 x 1000"),
    "half, with an end": (NOISY[: len(NOISY) // 2] + b"\xff\xd9", "data end before the picture"),
    "a tenth, with an end": (NOISY[: len(NOISY) // 10] + b"\xff\xd9", "data end before the picture|too few"),
    "half": (NOISY[: len(NOISY) // 2], "truncated"),
    "all but 30 bytes": (NOISY[:-30], "truncated"),
    "all but the end mark": (NOISY[:-2], "ok"),
    "all but half of the end mark": (NOISY[:-1], "ok"),
    "progressive, all but the end mark": (PROGRESSIVE[:-2], "ok"),
    "progressive without its last scan": (PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")], "truncated"),
    "progressive, half": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
    "a grey picture": (saved("JPEG", Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))), "ok"),
    "a thousand scans": (with_scans(1000), "more than 100 scans"),
    "some more scans": (with_scans(20), "ok|unreadable"),
    "a profile of 16 MB": (JPEG[:2] + PROFILE + JPEG[2:], "ok"),
    "comments of 16 MB": (JPEG[:2] + (b"\xff\xfe" + struct.pack(">H", 65_535) + b"x" * 65_533) * 250 + JPEG[2:], "ok"),
    "damaged EXIF": (JPEG[:2] + app(1, b"Exif\0\0MM\0*\xff\xff\xff\xff") + JPEG[2:], "ok"),
    "a damaged multi-picture index": (JPEG[:2] + app(2, b"MPF\0II*\0\xff\xff\xff\xff") + JPEG[2:], "ok"),
    "a damaged Photoshop block": (JPEG[:2] + app(13, b"Photoshop 3.0\x008BIM\xff\xff") + JPEG[2:], "ok"),
    "a segment without a length": (JPEG[:2] + b"\xff\xe5\x00\x00" + JPEG[2:], "ok"),
    "unknown segments": (JPEG[:2] + b"\xff\xf0\x00\x04ab" + b"\xff\x02\x00\x03a" + JPEG[2:], "ok"),
    "12 bits": (JPEG[: _FRAME + 4] + b"\x0c" + JPEG[_FRAME + 5 :], "unsupported"),
    "lossless": (JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1), "unsupported"),
    "arithmetic": (JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1), "unsupported"),
    "two components": (JPEG[: _FRAME + 9] + b"\x02" + JPEG[_FRAME + 10 :], "2 components"),
    "sampling of 0": (JPEG[: _FRAME + 11] + b"\x00" + JPEG[_FRAME + 12 :], "sampling factors"),
    "bytes behind the end": (JPEG + b"x" * 100, "ok"),
    "another picture behind the end": (JPEG + sized(SIDE, SIDE), "ok"),
}

# ---- TIFF

_FORMS = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}


def tiff(
    *fields: tuple[int, int, Sequence[int] | bytes],
    order: str = "<",
    is_big: bool = False,
    pixels: bytes = PICTURE.tobytes(),
    plain: bool = True,
    next_directory: int = 0,
) -> bytes:
    """A TIFF of fields (tag, type, values), after those of an uncompressed RGB picture where `plain`; those of the same
    tag are replaced, and one of a tag that comes twice stands twice."""
    start = 16 if is_big else 8
    given = {tag for tag, _, _ in fields}
    common: list[tuple[int, int, Sequence[int] | bytes]] = [
        (256, 4, [WIDTH]), (257, 4, [HEIGHT]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [2]), (273, 4, [start]),
        (277, 3, [3]), (278, 4, [HEIGHT]), (279, 4, [len(pixels)]),
    ]  # fmt: skip
    entries = sorted([*(one for one in common if plain and one[0] not in given), *fields], key=lambda one: one[0])
    room, data = (8, b"") if is_big else (4, b"")
    directory = start + len(pixels)
    head = (8 if is_big else 2) + len(entries) * (20 if is_big else 12) + room
    body = b""
    for tag, kind, values in entries:
        packed = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{_FORMS[kind]}", *values)
        count = len(packed) // struct.calcsize(f"{order}{_FORMS[kind]}")
        body += struct.pack(f"{order}HH{'Q' if is_big else 'I'}", tag, kind, count)
        if len(packed) <= room:
            body += packed.ljust(room, b"\0")
        else:
            body += struct.pack(order + ("Q" if is_big else "I"), directory + head + len(data))
            data += packed
    mark = b"II" if order == "<" else b"MM"
    if is_big:
        top = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, directory) + pixels + struct.pack(f"{order}Q", len(entries))
        return top + body + struct.pack(f"{order}Q", next_directory) + data
    top = mark + struct.pack(f"{order}HI", 42, directory) + pixels + struct.pack(f"{order}H", len(entries))
    return top + body + struct.pack(f"{order}I", next_directory) + data


def tiled(side: int, **options: Any) -> bytes:
    tile = ((322, 4, [side]), (323, 4, [side]), (324, 4, [8]), (325, 4, [100]), (278, 4, [2**32 - 1]))
    return tiff(*tile, **options)


def same_everywhere(number: int) -> bytes:
    """Many fields of metadata that all tell of one large piece of the file."""
    large = bytes(4_000_000)
    made = tiff(*((60_000 + k, 1, bytes(8)) for k in range(number)), pixels=PICTURE.tobytes() + large)
    place = struct.unpack("<I", made[4:8])[0] + 2
    entries = bytearray(made)
    for position in range(place, place + 12 * (9 + number), 12):
        if struct.unpack_from("<H", made, position)[0] >= 60_000:
            struct.pack_into("<II", entries, position + 4, len(large), 8 + PICTURE.nbytes)
    return bytes(entries)


def deflated(rows: bytes, *fields: tuple[int, int, Sequence[int] | bytes]) -> bytes:
    packed = zlib.compress(rows, 9)
    return tiff((259, 3, [8]), *fields, pixels=packed)


LOOP = tiff(next_directory=8 + PICTURE.nbytes)
TIFFS: dict[str, tuple[bytes, str]] = {
    "plain": (tiff(), "ok"),
    "big endian": (tiff(order=">"), "ok"),
    "BigTIFF": (tiff(is_big=True), "ok"),
    "BigTIFF, big endian": (tiff(is_big=True, order=">"), "unsupported"),
    "two pages": (saved("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), "ok"),
    "larger than allowed": (tiff((256, 4, [SIDE]), (257, 4, [SIDE])), "too_large"),
    "the largest number": (tiff((256, 4, [2**32 - 1]), (257, 4, [2**32 - 1])), "too_large"),
    "two widths": (tiff((256, 4, [WIDTH]), (256, 4, [SIDE * SIDE])), "ok"),
    "two widths, the large one first": (tiff((256, 4, [SIDE * SIDE]), (256, 4, [WIDTH])), "too_large"),
    "a width of two values": (tiff((256, 3, [WIDTH, SIDE])), "field 256, a length, holds 2 values"),
    "no width": (tiff((256, 4, [0])), "its size is 0 x 24"),
    "no size": (tiff((273, 4, [8]), plain=False), "its size is 0 x 0"),
    "a tile larger than all": (tiled(32_752), "too_large"),
    "a deflated tile larger than all": (
        tiff((259, 3, [8]), (322, 4, [32_752]), (323, 4, [32_752]), (324, 4, [8]), (325, 4, [100])),
        "too_large",
    ),
    "a tile of no size": (tiled(0), "ok"),
    "a strip of all rows there are": (tiff((278, 4, [2**32 - 1])), "ok"),
    "a deflated strip of more than its rows": (deflated(PICTURE.tobytes() + bytes(30_000_000)), "ok"),
    "a deflated strip of fewer rows": (deflated(PICTURE.tobytes()[:99]), "unreadable"),
    "a strip behind the end": (tiff((273, 4, [2**32 - 8])), "unreadable"),
    "a field of 2^32 values": (tiff().replace(struct.pack("<HHI", 258, 3, 3), struct.pack("<HHI", 258, 3, 2**32 - 1)),
        "field 258"),
    "a million strips": (tiff((273, 4, [8] * 1_000_000)), "tells of 1000000 strips"),
    "more strips than any picture": (tiff((273, 1, bytes(2_000_000)), (257, 4, [2_000_000]), (256, 4, [1]),
        (278, 4, [1])), "too_large|unsupported"),
    "directories in a circle": (LOOP, "ok"),
    "a profile of 15 MB": (tiff((34675, 1, bytes(15_000_000))), "ok"),
    "a text behind the end": (tiff((270, 2, b"abcd")).replace(struct.pack("<HHI", 270, 2, 4),
        struct.pack("<HHI", 270, 2, 99_999)), "ok"),
    "two hundred fields of 4 MB": (same_everywhere(200), "ok"),
    "EXIF, GPS and other directories at nowhere": (tiff((330, 4, [2**31]), (34665, 4, [2**31]), (34853, 4, [5])), "ok"),
    "a directory at nowhere": (b"II*\0\xff\xff\xff\xff", "it is cut"),
    "a directory that is cut": (tiff()[:-40], "directory is cut"),
    "65,535 samples": (tiff((277, 3, [65_535])), "unreadable"),
    "floating point": (saved("TIFF", Image.new("F", (9, 9))), "unsupported"),
    "an unknown compression": (tiff((259, 3, [12_345])), "unsupported: TIFF of kind 12345"),
    "channels of 64 bits": (tiff((258, 3, [64, 64, 64])), "unsupported"),
}  # fmt: skip

# ---- the others


def gif(canvas: int, frame: int, before: bytes = b"") -> bytes:
    plain = saved("GIF", Image.new("P", (8, 8)))
    place = plain.index(b",")
    size, of_frame = struct.pack("<HH", canvas, canvas), struct.pack("<HH", frame, frame)
    return plain[:6] + size + plain[10:place] + before + plain[place : place + 5] + of_frame + plain[place + 9 :]


def comment(size: int) -> bytes:
    return b"!\xfe" + (b"\xff" + b"x" * 255) * (size // 255) + b"\0"


def webp(*chunks: tuple[bytes, bytes], canvas: tuple[int, int] = (WIDTH, HEIGHT), flags: int = 0) -> bytes:
    plain = saved("WEBP", lossless=True)
    size = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    body = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size + plain[12:]
    for name, content in chunks:
        body += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bmp(width: int, height: int, compression: int = 0, pixels: bytes = PICTURE.tobytes(), depth: int = 24) -> bytes:
    palette = bytes(1024) if depth == 8 else b""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, 0, 0, 0, 0, 0)
    return (
        b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(pixels), 0, 0, 54 + len(palette)) + info + palette + pixels
    )


OTHERS: dict[str, tuple[bytes, str]] = {
    "GIF": (gif(8, 8), "ok"),
    "GIF with a large canvas": (gif(65_535, 8), "too_large"),
    "GIF with a frame beyond its canvas": (gif(10, 60_000), "too_large"),
    "GIF with a comment of 15 MB": (gif(8, 8, comment(15_000_000)), "ok"),
    "GIF with stray bytes": (gif(8, 8, bytes(15_000_000)), "ok"),
    "GIF without a picture": (gif(8, 8, b";"), "no picture"),
    "GIF of no size": (gif(0, 0), "its size is 0 x 0"),
    "WebP": (webp(), "ok"),
    "WebP with a large canvas": (webp(canvas=(16_384, 16_384)), "too_large"),
    "WebP with the largest canvas": (webp(canvas=(2**24, 2**24)), "too_large"),
    "WebP with a canvas of another size": (webp(canvas=(WIDTH + 1, HEIGHT)), "unreadable"),
    "WebP with metadata of 15 MB": (
        webp((b"ICCP", b"x" * 5_000_000), (b"EXIF", bytes(5_000_000)), (b"XMP ", b"y" * 5_000_001), flags=44),
        "ok",
    ),
    "WebP with unknown chunks": (webp((b"abcd", b"x" * 999)), "ok"),
    "WebP that is cut": (webp((b"EXIF", b"x" * 99))[:-150], "unreadable"),
    "BMP": (bmp(WIDTH, HEIGHT), "ok"),
    "BMP from the top": (bmp(WIDTH, -HEIGHT), "ok"),
    "BMP larger than allowed": (bmp(SIDE, SIDE), "too_large"),
    "BMP larger than allowed, from the top": (bmp(SIDE, -SIDE), "too_large"),
    "BMP of the largest number": (bmp(2**31 - 1, 2**31 - 1), "too_large"),
    "BMP of the smallest number": (bmp(2**31 - 1, -(2**31)), "too_large|unreadable"),
    "BMP of a negative width": (bmp(-5, 5), "unreadable|ok|too_large"),
    "BMP of a JPEG": (bmp(10, 10, 4, JPEG), "unsupported"),
    "BMP in runs": (bmp(10, 10, 1, b"\x0a\x07\0\0" * 10 + b"\0\1", 8), "ok"),
    "BMP of steps beyond": (bmp(1_000_000, 1, 1, b"\0\2\xff\xff" * 1000, 8), "ok|unreadable"),
    "ICO with a large PNG": (struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 99, 22) + png(), "unsupported"),
    "PNM of large numbers": (b"P6 99999999999 99999999999 255\n", "unsupported"),
    "TGA of the largest size": (b"\0\0\2" + bytes(9) + b"\xff\xff\xff\xff\x18\0", "unsupported"),
    "ICNS": (b"icns\0\0\0\x20ic07" + png(), "unreadable"),
    "a password file": (b"root:x:0:0:root:/root:/bin/bash\n", "not an image: it is text"),
    "a web page": (b"\n<!DOCTYPE html><html></html>", "HTML page"),
    "zeros": (bytes(99), "zeros"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "random bytes": (b"\x07\x93" + bytes(range(99)), "of no known format"),
}  # fmt: skip

CASES = {
    f"{kind}: {name}": case
    for kind, cases in (("PNG", PNGS), ("JPEG", JPEGS), ("TIFF", TIFFS), ("other", OTHERS))
    for name, case in cases.items()
}

_DECODE = """
import json, os, pickle, resource, sys, time
import torch
torch.set_num_threads(1)
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.errors import ImageError
limit, cases = pickle.load(sys.stdin.buffer)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for name, encoded in cases.items():
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        before, started = peak(), time.process_time()
        try:
            pixels = decode_image(encoded, max_pixels=limit, apply_exif=True)
            outcome = f"ok {tuple(pixels.shape)}"
        except ImageError as error:
            outcome = f"{error.status}: {error}"
        except BaseException as error:
            outcome = f"{type(error).__name__}, which is no ImageError: {error}"
        print(json.dumps([name, outcome, peak() - before, time.process_time() - started]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps([name, f"ended by signal {status}", 0, 0]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, int, float]]:
    """What became of each file, megabytes above the idle process and seconds."""
    ran = subprocess.run(
        [sys.executable, "-c", _DECODE],
        input=pickle.dumps((LIMIT, {name: encoded for name, (encoded, _) in CASES.items()})),
        capture_output=True,
        cwd=Path(__file__).resolve().parents[3],
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    return {name: (outcome, peak, seconds) for name, outcome, peak, seconds in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
def test_outcome_and_memory(name: str, outcomes: dict[str, tuple[str, int, float]]) -> None:
    outcome, megabytes, seconds = outcomes[name]
    assert any(wanted in outcome for wanted in CASES[name][1].split("|")), outcome
    assert outcome.startswith(("ok", "unreadable", "unsupported", "too_large")), outcome
    assert "\n" not in outcome
    assert "/" not in outcome.split("Git LFS")[0], outcome  # no place in a library's sources
    assert megabytes <= MEGABYTES
    assert seconds < 10


def decode(encoded: bytes) -> np.ndarray:
    from maskrcnn_core.data.decode import decode_image

    return decode_image(encoded, max_pixels=LIMIT, apply_exif=False).permute(1, 2, 0).numpy()


LOSSLESS = [name for name, (_, outcome) in CASES.items() if outcome == "ok" and name.startswith(("PNG", "TIFF"))]


@pytest.mark.parametrize("name", [*LOSSLESS, "other: WebP", "other: WebP with metadata of 15 MB", "other: BMP"])
def test_what_stands_beside_changes_no_pixel(name: str) -> None:
    pixels = decode(CASES[name][0])
    assert np.array_equal(pixels, PICTURE[::-1, :, ::-1] if "BMP" in name else PICTURE)


@pytest.mark.parametrize("name", [name for name, (_, outcome) in JPEGS.items() if outcome == "ok"])
def test_what_stands_beside_changes_no_pixel_of_a_jpeg(name: str) -> None:
    encoded = JPEGS[name][0]
    sound = {"all but": NOISY, "progressive": PROGRESSIVE, "a grey": encoded}
    whole = next((file for begin, file in sound.items() if name.startswith(begin)), JPEG)
    assert np.array_equal(decode(encoded), np.array(Image.open(io.BytesIO(whole))))


@pytest.mark.parametrize("write", [lambda e: saved("JPEG", exif=e), lambda e: saved("PNG", exif=e)])
def test_orientation_is_read_among_other_metadata(write: Callable[[Image.Exif], bytes]) -> None:
    from maskrcnn_core.data.decode import image_size

    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = write(exif)
    if encoded.startswith(b"\x89PNG"):
        text = PngImagePlugin.PngInfo()
        text.add_text("a", "x" * 2_000_000, zip=True)
        encoded = saved("PNG", pnginfo=text, exif=exif)
    else:
        encoded = encoded[:2] + PROFILE + encoded[2:]
    assert image_size(encoded, apply_exif=True) == (WIDTH, HEIGHT)
    assert image_size(encoded, apply_exif=False) == (HEIGHT, WIDTH)
