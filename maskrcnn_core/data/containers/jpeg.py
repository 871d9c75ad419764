"""A JPEG file as its decoder sees it (ITU-T T.81, annex B): one frame, and nothing that is not needed for its pixels.

The segments before the first scan are read with the rules of libjpeg, which forgives bytes between them, and written
anew: what it allocates is the one frame that was looked at here, and no profile, text or thumbnail reaches it.
"""

import re
import struct
from dataclasses import dataclass

from maskrcnn_core.data.containers.header import Header, read_orientation
from maskrcnn_core.errors import ImageError

END = b"\xff\xd9"

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # FF 00 is no marker, and FF may be repeated
_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # nor does a restart end a scan
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READABLE_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman
_PROGRESSIVE = 0xC2
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_NEEDED = _FRAMES | {0xC4, 0xDB, 0xDD}  # and Huffman tables, quantisation tables, restart interval
_MARKS = {0xE0: b"JFIF\x00", 0xEE: b"Adobe"}  # how the channels are to be understood
_EXIF, _EXIF_MARK = 0xE1, b"Exif\x00\x00"
# A scan costs a pass over all pixels and may be a few bytes long. Encoders write some 10, and 64 at most.
_MOST_SCANS = 100


@dataclass(frozen=True)
class Frame:
    """The frame header.

    Attributes:
        height, width: pixels.
        progressive: of several scans that refine each other.
        sampling: (horizontal, vertical) factors of each component.
    """

    height: int
    width: int
    progressive: bool
    sampling: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class JpegFile:
    """What a decoder is given.

    Attributes:
        header: size and orientation.
        content: the file without what decides no pixel.
        frame: its frame header.
        scan: where the first scan header begins in `content`.
    """

    header: Header
    content: bytearray
    frame: Frame
    scan: int


def open_jpeg(encoded: bytes) -> JpegFile:
    """Read the segments up to the first scan; of a file that is cut before it, what is there.

    Raises:
        ImageError: `unreadable` if cut before the frame header or damaged, `unsupported` for lossless, arithmetic or
            12-bit JPEG.
    """
    kept, frame, orientation, position = [encoded[:2]], None, 1, 2
    while (match := _MARKER.search(encoded, position)) is not None:
        start = match.end()
        marker = encoded[start - 1]
        if marker == _SCAN:
            position = start - 2
            break
        if marker in (_START, _END):  # over, or begun again, before any picture
            raise _damaged("it ends before its picture begins")
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position = start
            continue
        length = int.from_bytes(encoded[start : start + 2], "big")
        position = start + max(2, length)
        if marker in _FRAMES:
            if frame is not None:
                raise _damaged("it has two frame headers")
            frame = _read_frame(marker, encoded[start + 2 : position])
        mark = _MARKS.get(marker)
        if marker in _NEEDED or (mark is not None and encoded.startswith(mark, start + 2)):
            kept.append(encoded[start - 2 : start + length])
        elif marker == _EXIF and orientation == 1 and encoded.startswith(_EXIF_MARK, start + 2):
            orientation = read_orientation(encoded[start + 2 + len(_EXIF_MARK) : position])
    else:
        position = len(encoded)
    if frame is None:
        raise _damaged("it has no frame header")
    scan = sum(map(len, kept))
    content = bytearray().join([*kept, memoryview(encoded)[position:]])
    return JpegFile(Header(frame.height, frame.width, orientation), content, frame, scan)


def require_enough_data(file: JpegFile) -> None:
    """Refuse what cannot hold its picture, or asks for endless work, before anything is allocated for it.

    A block of 8 x 8 values takes a bit at least in each scan of a progressive picture, and two in any other.

    Raises:
        ImageError: `unreadable`.
    """
    frame = file.frame
    widest, tallest = (max(factors) for factors in zip(*frame.sampling, strict=True))
    blocks = min(_blocks(frame.width * h, widest) * _blocks(frame.height * v, tallest) for h, v in frame.sampling)
    least = blocks * (1 if frame.progressive else 2) // 8
    there = len(file.content) - file.scan
    if there < least:
        raise _damaged(
            f"{there} bytes are too few for its {frame.width} x {frame.height} pixels; it is cut, or its size is wrong"
        )
    if (frame.progressive or not _is_interleaved(file)) and len(_scans(file, _MOST_SCANS + 1)) > _MOST_SCANS:
        raise _damaged(f"it has more than {_MOST_SCANS} scans")


def with_end(file: JpegFile, filler: bytes) -> bytearray:
    """The file with `filler` where its data end, and an end marker behind: a decoder that has had all pixels before
    skips the filler, one that has not takes it for pixels."""
    content = file.content
    last = file.scan if _is_interleaved(file) else _scans(file, _MOST_SCANS)[-1]
    match = _SCAN_END.search(content, last + 2 + _scan_length(file, last))
    if match is None or file.frame.progressive:  # progressive: the last scan's data are at the end
        stop = len(content)
        while content[stop - 1] == 0xFF:
            stop -= 1
        return content[:stop] + filler + END
    return content[: match.start()] + filler + END


def has_all_scans(file: JpegFile) -> bool:
    """Whether the scans have every component, and in a progressive file every coefficient of it to its last bit."""
    if _is_interleaved(file) and not file.frame.progressive:
        return True
    bits: dict[tuple[int, int], int] = {}
    for start in _scans(file, _MOST_SCANS):
        header = file.content[start + 4 : start + 2 + _scan_length(file, start)]
        if len(header) < 4 or len(header) < 4 + 2 * header[0]:
            return False
        # What a baseline file says of coefficients, decoders do not look at: a scan has all of them.
        first, last, low = (header[-3], header[-2], header[-1] & 15) if file.frame.progressive else (0, 63, 0)
        for component in range(header[0]):
            bits |= {(header[1 + 2 * component], k): low for k in range(first, min(last, 63) + 1)}
    return len(bits) == 64 * len(file.frame.sampling) and not any(bits.values())


def _read_frame(marker: int, segment: bytes) -> Frame:
    if len(segment) < 6:
        raise _damaged("its frame header is cut")
    precision, height, width, components = struct.unpack(">BHHB", segment[:6])
    if marker not in _READABLE_FRAMES or precision != 8:
        raise ImageError(
            "unsupported",
            f"JPEG of type SOF{marker - 0xC0} with {precision} bits, expected baseline or progressive with 8 bits; "
            "convert the file",
        )
    if height == 0 or width == 0:
        raise _damaged(f"its size is {width} x {height} pixels")
    if components not in (1, 3, 4) or len(segment) < 6 + 3 * components:
        raise _damaged(f"its frame header tells of {components} components")
    sampling = tuple((byte >> 4, byte & 15) for byte in segment[7 : 7 + 3 * components : 3])
    if not all(1 <= factor <= 4 for factors in sampling for factor in factors):
        raise _damaged("its sampling factors are not between 1 and 4")
    return Frame(height, width, marker == _PROGRESSIVE, sampling)


def _blocks(samples: int, factor: int) -> int:
    """Blocks of 8 in a row or column of samples / factor values."""
    return -(-samples // (8 * factor))


def _scans(file: JpegFile, most: int) -> list[int]:
    """Where the first scan headers begin, `most` of them at most."""
    content, position = file.content, file.scan
    starts: list[int] = []
    while position + 4 <= len(content) and len(starts) < most:
        marker = content[position + 1]
        if marker == _END:
            break
        if marker == _SCAN:
            starts.append(position)
        match = _SCAN_END.search(content, position + 2 + max(2, _scan_length(file, position)))
        if match is None:
            break
        position = match.end() - 2
    return starts


def _scan_length(file: JpegFile, start: int) -> int:
    return int.from_bytes(file.content[start + 2 : start + 4], "big")


def _is_interleaved(file: JpegFile) -> bool:
    """Whether the first scan has all components, as most encoders write; or there is none."""
    offset = file.scan + 4
    return offset >= len(file.content) or file.content[offset] >= len(file.frame.sampling)


def _damaged(how: str) -> ImageError:
    return ImageError("unreadable", f"damaged JPEG: {how}")
